select id, org from convoke.agents where id = any ($1::text[])
