-- What agents promise, and how often their definitions have changed.
select g.id, g.terms, g.definition_version from convoke.agents g
where ($1::text is null or g.org = $1)
