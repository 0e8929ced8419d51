//! Row changes for clients: who sees which row.
mod rows;
mod sight;
