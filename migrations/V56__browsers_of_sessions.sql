-- What a person recognizes a session by: the browser that signed in, as it names itself.
alter table convoke.sessions add column browser text;
