-- Waits for an end of the assignment that asked the question $1, and holds off another.
select a.id from convoke.model_questions q join convoke.assignments a on a.id = q.assignment_id
where q.id = $1 for share of a
