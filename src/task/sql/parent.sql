select parent_id from convoke.tasks where id = $1 and parent_id is not null and not detached
