//! Websockets of realtime clients.
mod config;

pub use config::Config;
