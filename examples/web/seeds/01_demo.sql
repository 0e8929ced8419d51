-- People, rooms and a little content. Adds what is missing, changes nothing else.
insert into public.people (id, name) values
  ('ana', 'Ana'), ('ben', 'Ben'), ('cleo', 'Cleo'), ('dan', 'Dan (may only read)'), ('eve', 'Eve (a stranger)')
on conflict do nothing;

insert into public.members (topic, user_id, role)
select topic, person, case person when 'dan' then 'reader' else 'writer' end
  from unnest(array['chat:lobby', 'chat:design', 'webrtc:lobby', 'doc:welcome', 'whiteboard:lobby', 'dashboard:demo']) topic,
       unnest(array['ana', 'ben', 'cleo', 'dan']) person
on conflict do nothing;

insert into public.documents (id, title) values ('welcome', 'Welcome') on conflict do nothing;

insert into public.widgets (id, org, kind, title, source, settings, max_data_points, place) values
  ('latency', 'demo', 'line', 'Latency, ms', 'api', '{}', 50, 1),
  ('requests', 'demo', 'counter', 'Requests', 'api', '{}', 50, 2),
  ('load', 'demo', 'gauge', 'Load, %', 'load', '{"min": 0, "max": 100}', 50, 3),
  ('routes', 'demo', 'bars', 'By route', 'api', '{"by": "route"}', 50, 4),
  ('recent', 'demo', 'table', 'Newest events', 'api', '{}', 20, 5)
on conflict do nothing;
