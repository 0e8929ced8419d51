-- The date from which the price holds by which a question is charged (docs/spec/thinking-agents.md §6, C1). Null without a
-- price, and for a price that always holds.
alter table convoke.model_questions add column price_from date;
