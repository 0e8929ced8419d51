array(
    with recursive held (oid) as (
        select r.oid from pg_catalog.pg_roles r where r.rolname = any($3)
        union
        select m.roleid from pg_catalog.pg_auth_members m join held h on m.member = h.oid
    )
    select h.oid from held h
)
