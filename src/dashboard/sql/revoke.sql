-- Ends one session ($4) of a person ($2) in an org ($1), or with $3 of anybody there.
delete from convoke.sessions s where s.id = $4::uuid and s.org = $1 and ($3::boolean or s.subject = $2)
