// What a task waits for from a person, and the form that gives it.
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useId } from "preact/hooks";
import { answerTask, setBudget } from "../api.ts";
import { useCommand } from "../dialog.tsx";
import { budgetOf } from "../limits.ts";
import { status } from "../live.ts";
import { isOperator, seesData } from "../session.ts";
import type { Line, Task, Why } from "../types.ts";
import { Ago } from "../ui.tsx";
import { BudgetFields } from "./Budget.tsx";
import { Choice } from "./Why.tsx";

export type Need = NonNullable<Line["needs"]>;

/** What a task needs from a person now; `null` if it needs nothing. */
export function needOf({ task, award, rounds }: Why): Need | null {
  if (task.state === "waiting") return (task.question?.for as Need | undefined) ?? "input";
  const last = rounds.at(-1);
  return task.state === "open" && award === "requester" && last && !last.closed_at && last.offers.some(({ state }) => state === "open") ? "choice" : null;
}

/** A call of an agent that thinks, of which nobody knows whether it had its effect. */
const isUnknown = ({ runs }: Why): boolean => runs.at(-1)?.steps.some(({ state }) => state === "unknown") ?? false;

export function Answer({ org, why, need }: { org: string; why: Why; need: Need }): JSX.Element {
  const { task } = why;
  const question = task.question;
  return (
    <div class="notice wait answer">
      {need === "choice" ? <strong>Choose an offer: the requester decides who gets the task.</strong> : <strong class="question">{question?.agent_id ?? "The agent"} asks: {question?.question ?? (seesData.value ? "It did not say what." : "what it asks is shown to operators.")}</strong>}
      {question?.asked_at && need !== "choice" ? <p class="soft">asked <Ago at={question.asked_at} /></p> : null}
      {isOperator.value ? <Form org={org} why={why} need={need} /> : <p>A viewer cannot answer. <code>convoke dashboard --role operator</code> prints a link for a person who can.</p>}
    </div>
  );
}

function Form({ org, why, need }: { org: string; why: Why; need: Need }): JSX.Element {
  const { task } = why;
  if (need === "choice") return <Choice org={org} why={why} />;
  if (need === "budget") return <BudgetForm task={task} />;
  if (need === "approval") return isUnknown(why) ? <Outcome task={task} /> : <Approval task={task} />;
  return <Input task={task} />;
}

/** Buttons that send an answer; what was typed stays when the daemon refuses it. */
function Send({ task, answers }: { task: Task; answers: { label: string; kind?: string; answer: () => string }[] }): JSX.Element {
  const sent = useSignal(false);
  const next = useSignal<() => string>(() => "null");
  const { fault, isBusy, act } = useCommand(() => answerTask(task.id, next.value()), () => (sent.value = true));
  return (
    <>
      <div class="inline">
        {answers.map(({ label, kind, answer }, at) => (
          <button key={label} type={at === 0 ? "submit" : "button"} class={kind ?? ""} disabled={isBusy.value || sent.value || status.value === "no connection"} onClick={(event) => {
            event.preventDefault();
            next.value = answer;
            void act();
          }}>{label}</button>
        ))}
        <span role="status" class="soft">{sent.value ? "Sent. The task goes on when an agent is free." : ""}</span>
      </div>
      {fault.value ? <p class="bad" role="alert">{fault.value}</p> : null}
    </>
  );
}

function Input({ task }: { task: Task }): JSX.Element {
  const text = useSignal("");
  const isJson = useSignal(false);
  const id = useId();
  const read = (): string => {
    if (!isJson.value) return JSON.stringify(text.value);
    try {
      JSON.parse(text.value);
    } catch (error) {
      throw new Error(`This is no JSON: ${error instanceof Error ? error.message : String(error)}`);
    }
    return text.value;
  };
  return (
    <form onSubmit={(event) => event.preventDefault()}>
      <label for={id}>Answer</label>
      <textarea id={id} rows={3} value={text.value} onInput={(event) => (text.value = event.currentTarget.value)} />
      <label class="check"><input type="checkbox" checked={isJson.value} onChange={() => (isJson.value = !isJson.value)} /> The answer is JSON</label>
      <Send task={task} answers={[{ label: "Answer", kind: "primary", answer: read }]} />
    </form>
  );
}

function Approval({ task }: { task: Task }): JSX.Element {
  const words = useSignal("");
  const says = (approved: boolean) => (): string => JSON.stringify(words.value ? { approved, note: words.value } : { approved });
  return (
    <form onSubmit={(event) => event.preventDefault()}>
      <label>Note, if the agent should know why<input value={words.value} autocomplete="off" onInput={(event) => (words.value = event.currentTarget.value)} /></label>
      <Send task={task} answers={[{ label: "Approve", kind: "primary", answer: says(true) }, { label: "Reject", kind: "danger", answer: says(false) }]} />
    </form>
  );
}

/** An effect that may have happened: the person looks where it would be seen. */
function Outcome({ task }: { task: Task }): JSX.Element {
  const result = useSignal("");
  return (
    <form onSubmit={(event) => event.preventDefault()}>
      <label>Result of the call, as the agent should read it (if it happened)<input value={result.value} autocomplete="off" onInput={(event) => (result.value = event.currentTarget.value)} /></label>
      <Send task={task} answers={[
        { label: "It happened", answer: () => JSON.stringify({ outcome: "done", result: result.value }) },
        { label: "It did not: run it", answer: () => JSON.stringify({ outcome: "not_done" }) },
        { label: "Skip the call", answer: () => JSON.stringify({ outcome: "skip" }) },
      ]} />
    </form>
  );
}

function BudgetForm({ task }: { task: Task }): JSX.Element {
  const fields = useSignal<Record<string, string>>({});
  const { fault, isBusy, act } = useCommand(() => setBudget(task.id, budgetOf(fields.value)));
  return (
    <form class="command" onSubmit={(event) => {
      event.preventDefault();
      void act();
    }}>
      <BudgetFields task={task} fields={fields} />
      {fault.value ? <p class="bad" role="alert">{fault.value}</p> : null}
      <div class="inline"><button type="submit" class="primary" disabled={isBusy.value || status.value === "no connection"}>Raise the budget</button></div>
    </form>
  );
}
