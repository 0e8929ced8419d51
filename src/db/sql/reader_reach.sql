-- Functions that a read-only transaction does not stop, and those that run with the rights of another role.
select pg_catalog.format('%s', f.oid::pg_catalog.regprocedure) as function
  from pg_catalog.pg_proc f join pg_catalog.pg_namespace n on n.oid = f.pronamespace
 where pg_catalog.has_schema_privilege($1, n.oid, 'usage')
   and pg_catalog.has_function_privilege($1, f.oid, 'execute')
   and (f.prosecdef
        or f.proname like any (array['dblink%', 'lo\_%', 'query\_to\_xml%', 'pg\_read\_file%',
                                     'pg\_read\_binary\_file%', 'pg\_sleep%'])
        or f.proname in ('pg_logical_emit_message', 'pg_notify', 'pg_terminate_backend', 'pg_import_system_collations'))
 order by f.prosecdef desc, 1
