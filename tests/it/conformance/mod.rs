//! The statements of the checklist in `reference/realtime-protocol.md` §10, by hand over raw websockets.
//! Each test's doc line names the statements it shows.
mod broadcast;
mod connect;
mod framing;
mod http;
mod join;
mod presence;
mod private;
mod token;
