select s.run, s.seq, s.kind, s.state, s.tries, s.note_kind, s.note, s.last, s.ending, s.answer, s.provider, s.model_asked, s.after_seq, s.place, s.name,
    s.args, s.args_sha256, s.edited_args, s.effect, s.key, s.result, s.asked_after,
    case when s.approval = 'granted' and s.approval_expires_at <= clock_timestamp() then 'expired' else s.approval
    end as approval, s.doubtful, (extract(epoch from clock_timestamp() - s.began_at) * 1000)::bigint as age_ms
from convoke.steps s where s.task_id = $1 and s.run = (select max(r.run) from convoke.runs r where r.task_id = $1)
order by s.seq
