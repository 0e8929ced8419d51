//! What the nodes of a cluster must hear of each other: broadcasts, presence and hints to look.
//!
//! With one node there is nobody to tell, so nothing is here but the place. A second
//! node brings the trait with its two implementations (in this process, for tests of
//! several daemons; and NATS). Then the hub publishes what a client of this node said
//! with its room, the tracker publishes presence states, and what comes from the bus
//! never goes back to it. Queues to the bus drop and count; nothing durable relies on it.
