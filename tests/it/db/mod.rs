//! The database: a real server, outside and private.
mod migrations;
mod outside;
mod pool;
mod private;
mod private_faults;
