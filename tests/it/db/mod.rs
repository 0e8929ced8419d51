//! The database: a real server, outside and private.
mod pool;
