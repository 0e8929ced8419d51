-- Every statement finds its tasks by key, by due time or by class. Among finished tasks this index looked empty to
-- the planner, hence cheaper than the key: statements read all that was unfinished for each of their rows.
drop index convoke.tasks_unfinished;
