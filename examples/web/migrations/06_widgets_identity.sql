-- So that a widget that is removed is told to those who saw it: without its old row nobody may know.
alter table public.widgets replica identity full;
