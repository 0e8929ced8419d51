//! The database, configured and private, on real servers.
mod migrations;
mod outside;
mod pool;
mod pooler;
mod private;
mod private_attacks;
mod private_faults;
mod rights;
