-- Adds what a call cost ($4 microdollars, presumed if $5) to its step and its run, in the transaction that ends the step.
with run as (
    update convoke.runs r set microdollars = r.microdollars + $4::bigint
    where r.task_id = $1 and r.run = $2
    returning r.task_id
)
update convoke.steps s set microdollars = $4, presumed = $5
from run where s.task_id = run.task_id and s.run = $2 and s.seq = $3
returning s.seq
