delete from convoke.message where inserted_at < timezone('utc', now()) - make_interval(secs => $1)
