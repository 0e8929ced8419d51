        -- At most this many tasks are looked at, of whatever org: a filter that matches little must not read the
        -- whole table.
        select r.* from convoke.tasks r
        where ($8::uuid is null or r.id >= $8) and ($9::uuid is null or r.id < $9)
        order by r.id desc limit 50000
