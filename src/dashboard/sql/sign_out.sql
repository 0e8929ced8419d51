-- With $2, every session of the same person in the same org.
delete from convoke.sessions s using convoke.sessions own
where own.token_hash = $1::bytea
    and (s.id = own.id or ($2::boolean and s.subject = own.subject and s.org = own.org))
