-- Setting it writes a few bytes of log without holding a row: a commit that has written nothing
-- does not wait for the disk, not even for what other commits left to it.
create sequence convoke.flush;
