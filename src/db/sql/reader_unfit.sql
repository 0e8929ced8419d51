with reach as (
  -- Every role that the login could become: a select may call set_config('role', …).
  select oid, rolname, rolsuper, rolbypassrls, rolreplication from pg_catalog.pg_roles
   where pg_catalog.pg_has_role(oid, 'member')
)
select case
  when pg_catalog.current_setting('convoke.session', true) is distinct from 'on'
    then 'a connection pooler drops the settings of its sessions'
  when exists (select from reach where rolsuper) then 'it is a superuser, or a member of one'
  when exists (select from reach where rolbypassrls) then 'it bypasses row security'
  when exists (select from reach where rolreplication) then 'it may replicate'
  when exists (select from reach where rolname = $1) then 'it is the daemon''s role, or a member of it'
  when exists (select from reach where rolname in ('pg_execute_server_program', 'pg_read_server_files',
                                                   'pg_signal_backend', 'pg_write_server_files'))
    then 'it may run programs, touch files or end sessions of the server'
  when exists (select from pg_catalog.pg_database d join reach on reach.oid = d.datdba
                where d.datname = pg_catalog.current_database())
    then 'it owns the database'
  when owned.name is not null then pg_catalog.concat('it owns ', owned.name)
  when judged.name is not null
    then pg_catalog.concat('a policy of ', judged.name, ' reads a setting, which a select can change')
end as unfit
from (select pg_catalog.min(c.oid::pg_catalog.regclass::text) as name from pg_catalog.pg_class c
       join reach on reach.oid = c.relowner where c.relkind in ('r', 'p', 'v', 'm', 'f')) as owned,
     -- Policies must judge by the role. A function that a policy calls may read a setting, too.
     (select pg_catalog.min(p.polrelid::pg_catalog.regclass::text) as name from pg_catalog.pg_policy p
       where p.polcmd in ('*', 'r')
         and (p.polroles = '{0}' or exists (select from reach where reach.oid = any (p.polroles)))
         and pg_catalog.has_any_column_privilege(p.polrelid, 'select')
         and (pg_catalog.pg_get_expr(p.polqual, p.polrelid) ~ 'current_setting'
              or exists (
                select from pg_catalog.pg_depend d
                  join pg_catalog.pg_proc f on d.refclassid = 'pg_catalog.pg_proc'::regclass and f.oid = d.refobjid
                 where d.classid = 'pg_catalog.pg_policy'::regclass and d.objid = p.oid
                   and pg_catalog.concat(f.prosrc, pg_catalog.pg_get_function_sqlbody(f.oid)) ~ 'current_setting')))
     as judged
