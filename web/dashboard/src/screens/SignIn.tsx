// Signing in: with a link of `convoke dashboard`, opened or pasted.
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { type Session, type Ticket, session, signIn, ticketOf } from "../session.ts";

/** `title`: of the dialog over a page that stays, whose session has ended or is about to. */
export function SignIn({ message, title }: { message: string | null; title?: string }): JSX.Element {
  const text = useSignal("");
  const fault = useSignal<string | null>(null);
  const isBusy = useSignal(false);
  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    const ticket = ticketOf(text.value);
    if (!ticket) {
      fault.value = "This is not a sign-in link. It looks like …/dashboard/#code=…";
      return;
    }
    isBusy.value = true;
    fault.value = await signIn(ticket).catch((error: unknown) => (error instanceof Error ? error.message : String(error)));
    isBusy.value = false;
  };
  const told = fault.value ?? message;
  return (
    <div class="sign-in">
      {title ? <h2>{title}</h2> : <h1><Mark /> Convoke</h1>}
      <p>A link signs you in, once and within ten minutes. On the machine of the daemon, type:</p>
      <pre tabIndex={0}>convoke dashboard</pre>
      <p>Open the link, or paste it here:</p>
      <form onSubmit={(event) => void submit(event)}>
        <label>Sign-in link<input name="link" value={text.value} autocomplete="off" spellcheck={false} required aria-describedby={told ? "told" : undefined} onInput={(event) => (text.value = event.currentTarget.value)} /></label>
        <button type="submit" class="primary" disabled={isBusy.value}>Sign in</button>
      </form>
      {told ? <p id="told" class="bad" role="alert">{told}</p> : null}
    </div>
  );
}

/** A link for somebody else than who is signed in: it may have been sent by somebody else, too. */
export function Ask({ user, org, ticket, current }: { user: string; org: string; ticket: Ticket; current: Session }): JSX.Element {
  const follow = async (): Promise<void> => {
    const refused = await signIn(ticket).catch((error: unknown) => (error instanceof Error ? error.message : String(error)));
    if (refused) session.value = { is: "out", message: refused };
  };
  return (
    <div class="sign-in">
      <h1><Mark /> Sign in as {user}?</h1>
      <p>The link signs you in as <b>{user}</b> of org <b>{org}</b> at {location.host}. You are signed in as <b>{current.user}</b> of org <b>{current.org}</b>.</p>
      <div class="inline">
        <button type="button" class="primary" onClick={() => void follow()}>Sign in as {user}</button>
        <button type="button" onClick={() => (session.value = { is: "in", session: current })}>Stay {current.user}</button>
      </div>
    </div>
  );
}

export function Mark(): JSX.Element {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
      <rect width="32" height="32" rx="8" class="mark-ground" />
      <g class="mark-lines"><path d="M7 22c4 0 4-12 9-12" /><path d="M7 16h9" /><path d="M7 10c4 0 4 12 9 12" /></g>
      <circle cx="21" cy="10" r="3.2" class="mark-soft" /><circle cx="21" cy="16" r="3.6" class="mark-dot" /><circle cx="21" cy="22" r="3.2" class="mark-soft" />
    </svg>
  );
}
