-- The start of a task updates its assignment and no indexed column. With room for a second version of every row of a
-- page it stays in that page, and no index gets an entry: half of the updates, instead of a fifth.
alter table convoke.assignments set (fillfactor = 45);
