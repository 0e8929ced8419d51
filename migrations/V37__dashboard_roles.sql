-- What a session of the dashboard may do. A session of before only reads.
alter table convoke.sessions add column role text not null default 'viewer'
    check (role in ('viewer', 'operator', 'admin'));
