select s.seq, s.kind, s.state, s.tries, s.note_kind, s.note, s.last, s.ending, s.answer, s.after_seq, s.place, s.name,
    s.args, s.args_sha256, s.effect, s.key, s.result, s.asked_after
from convoke.steps s where s.task_id = $1 and s.run = $2 order by s.seq
