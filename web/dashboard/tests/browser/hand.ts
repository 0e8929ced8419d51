// A person who does the same with the mouse alone or with the keyboard alone.
import { type Locator, type Page, expect } from "@playwright/test";

/** More presses of Tab than any screen of the tests needs. */
const TABS_MAX = 200;
const LETTERS = { Switchboard: "s", Tasks: "t", Inbox: "i", Agents: "a" } as const;
type Screen = keyof typeof LETTERS;

export interface Hand {
  /** Opens a screen of the menu. */
  open(screen: Screen): Promise<void>;
  /** Finds a task or an agent with the palette. */
  find(text: string): Promise<void>;
  press(what: Locator): Promise<void>;
  /** Replaces the text of a field. */
  type(field: Locator, text: string): Promise<void>;
  /** Leaves a field, so that the page takes what was typed. */
  enter(): Promise<void>;
}

export const hands = { mouse: (page: Page): Hand => new Mouse(page), keyboard: (page: Page): Hand => new Keyboard(page) } as const;

/** Keys do nothing under a dialog. */
const isClosed = (page: Page): Promise<void> => expect(page.getByRole("dialog", { name: "Go to" })).toBeHidden();

class Mouse implements Hand {
  constructor(readonly page: Page) {}

  async open(screen: Screen): Promise<void> {
    await this.page.getByRole("navigation", { name: "Screens" }).getByRole("link", { name: screen }).click();
  }

  async find(text: string): Promise<void> {
    await this.page.getByRole("button", { name: "Go to" }).click();
    await expect(this.page.getByRole("combobox")).toBeFocused();
    await this.page.keyboard.type(text);
    await this.page.getByRole("option", { name: text }).first().click();
    await isClosed(this.page);
  }

  async press(what: Locator): Promise<void> {
    await what.click();
  }

  async type(field: Locator, text: string): Promise<void> {
    await field.click();
    await this.page.keyboard.press("ControlOrMeta+a");
    await this.page.keyboard.type(text);
  }

  async enter(): Promise<void> {
    // A click beside the fields.
    await this.page.getByRole("heading", { level: 1 }).first().click();
  }
}

class Keyboard implements Hand {
  constructor(readonly page: Page) {}

  async open(screen: Screen): Promise<void> {
    await this.#leaveField();
    await this.page.keyboard.press("g");
    await this.page.keyboard.press(LETTERS[screen]);
    await expect(this.page.getByRole("navigation", { name: "Screens" }).getByRole("link", { name: screen })).toHaveAttribute("aria-current", "page");
  }

  async find(text: string): Promise<void> {
    await this.page.keyboard.press("ControlOrMeta+k");
    await expect(this.page.getByRole("combobox")).toBeFocused();
    await this.page.keyboard.type(text);
    await expect(this.page.getByRole("option", { name: text }).first()).toHaveAttribute("aria-selected", "true");
    await this.page.keyboard.press("Enter");
    await isClosed(this.page);
  }

  async press(what: Locator): Promise<void> {
    await this.#reach(what);
    await this.page.keyboard.press("Enter");
  }

  async type(field: Locator, text: string): Promise<void> {
    await this.#reach(field);
    await this.page.keyboard.press("ControlOrMeta+a");
    await this.page.keyboard.type(text);
  }

  async enter(): Promise<void> {
    await this.page.keyboard.press("Enter");
  }

  /** Single letters are text in a field. */
  async #leaveField(): Promise<void> {
    if (await this.page.evaluate(() => document.activeElement?.matches("input, textarea"))) await this.page.keyboard.press("Escape");
  }

  /** Moves the focus as a person does, who has only Tab. */
  async #reach(what: Locator): Promise<void> {
    await expect(what).toBeVisible();
    for (let presses = 0; presses < TABS_MAX; presses++) {
      if (await what.evaluate((element) => element === document.activeElement)) return;
      await this.page.keyboard.press("Tab");
    }
    throw new Error(`${what} has not got the focus after ${TABS_MAX} presses of Tab`);
  }
}
