//! A client of the channels, for programs in Rust, against Convoke or Supabase Realtime.
//!
//! Owns one websocket and the channels on it. Usable alone: the feature `client` without
//! `daemon` brings none of the daemon's libraries. Never polls, never keeps an unbounded
//! queue, and never fails in silence. Follows `reference/realtime-protocol.md`.
