select exists (select from convoke.message where (commit_lsn, index) = ($1::text::pg_lsn, $2))
