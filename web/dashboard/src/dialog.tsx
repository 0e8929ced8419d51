// Dialogs: what changes something is confirmed in one.
import { useSignal } from "@preact/signals";
import type { ComponentChildren, JSX } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { again, status } from "./live.ts";
import { isOperator } from "./session.ts";

export function Dialog({ label, isOpen, onClose, children }: { label: string; isOpen: boolean; onClose: () => void; children: ComponentChildren }): JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null);
  const was = useSignal(false);
  // Before the next event: the dialog gets each key that follows the one that opens it.
  useLayoutEffect(() => {
    if (isOpen && !dialog.current?.open) dialog.current?.showModal();
    if (!isOpen && dialog.current?.open) dialog.current.close();
    was.value = isOpen;
  }, [isOpen]);
  // The event of a close comes in a later task: the dialog may have been opened again meanwhile, and stays open then.
  return <dialog ref={dialog} aria-label={label} onCancel={onClose} onClose={(event) => event.currentTarget.open || onClose()}>{isOpen || was.value ? children : null}</dialog>;
}

/**
 * A button that opens a dialog, and the command that the dialog confirms. Absent for people who may not command. The
 * dialog stays open, with the reason, if the daemon refuses. `letter` is the key that presses the button.
 */
export function Command({ label, title, verb, letter, isDangerous = false, children, run, class: extra = "small" }: { label: string; title: string; verb: string; letter?: string; isDangerous?: boolean; children: ComponentChildren; run: () => Promise<unknown>; class?: string }): JSX.Element | null {
  const isOpen = useSignal(false);
  const { fault, isBusy, act } = useCommand(run, () => (isOpen.value = false));
  if (!isOperator.value) return null;
  const submit = (event: Event): void => {
    event.preventDefault();
    void act();
  };
  const close = (): void => {
    isOpen.value = false;
    fault.value = null;
  };
  return (
    <>
      <button type="button" class={extra} data-letter={letter} disabled={status.value === "no connection"} onClick={() => (isOpen.value = true)}>{label}</button>
      <Dialog label={title} isOpen={isOpen.value} onClose={close}>
        <form class="command" onSubmit={submit}>
          <h2>{title}</h2>
          {children}
          {fault.value ? <p class="bad" role="alert">{fault.value}</p> : null}
          <div class="inline">
            <button type="submit" class={isDangerous ? "danger" : "primary"} disabled={isBusy.value}>{verb}</button>
            <button type="button" onClick={close}>Leave it</button>
          </div>
        </form>
      </Dialog>
    </>
  );
}

/** Runs a command once at a time, and keeps what the daemon says against it. */
export function useCommand(run: () => Promise<unknown>, done: () => void = () => undefined): { fault: { value: string | null }; isBusy: { readonly value: boolean }; act: () => Promise<void> } {
  const fault = useSignal<string | null>(null);
  const isBusy = useSignal(false);
  const act = async (): Promise<void> => {
    if (isBusy.peek()) return;
    isBusy.value = true;
    fault.value = null;
    try {
      await run();
      done();
      // What the command changed is read, not assumed.
      again();
    } catch (error) {
      fault.value = error instanceof Error ? error.message : String(error);
    } finally {
      isBusy.value = false;
    }
  };
  return { fault, isBusy, act };
}
