-- SQL refuses the numbers that every other door refuses: those that a reader of the task would get rounded. Rows
-- that hold such a number keep it, and are read as before.

-- Why the daemon cannot read a JSON value without loss, or null: the depth, and the rule of `json::check` for numbers
-- (whole numbers of 64 bits, any other number with the precision of a double).
create or replace function convoke.json_fault(value jsonb) returns text language plpgsql immutable
set search_path = pg_catalog, pg_temp
-- A double is written with the fewest digits that tell it from its neighbours.
set extra_float_digits = 1 as $$
declare
    written text;
    number numeric;
begin
    if jsonb_path_exists(value, 'strict $.**{100 to last} ? (@.type() == "object" || @.type() == "array")') then
        return 'is nested more than 100 deep';
    end if;
    -- A number of 17 characters has at most 17 digits, and so many are always kept.
    for written in select n #>> '{}' from jsonb_path_query(value, 'strict $.** ? (@.type() == "number")') as n
        where octet_length(n #>> '{}') > 17 loop
        number := written::numeric;
        continue when number = 0;
        continue when written ~ '^-?[0-9]+$' and number between -9223372036854775808 and 18446744073709551615;
        -- What is beyond rounds to zero or to infinity, and the cast to a double would fail.
        if abs(number) between 2.4703282292062328e-324 and 1.797693134862315807e308 then
            continue when length(btrim(translate(written, '-.', ''), '0')) <= 17;
            continue when number::double precision::text::numeric = number;
        end if;
        return format('has the number %s, which has more digits than can be kept: send it as a text',
            case when length(written) > 40 then left(written, 40) || '...' else written end);
    end loop;
    return null;
end $$;
