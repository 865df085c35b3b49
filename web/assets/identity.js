// Who calls: the token of this tab, or the random user id of this browser. Remembers which vote was cast from here.
// The token must never get into a query, a log, the document, or storage that outlives the tab.

// Browsers keep what is behind `#` to themselves. `#TOKEN` and `#token=TOKEN` are the same.
const FRAGMENT = /^#(?:token=)?([A-Za-z0-9._~+/=-]{16,})$/;

/** Storage may be blocked, in a frame for instance. Then values last as long as the page. */
function storage(name) {
  const memory = new Map();
  return {
    get(key) {
      try {
        return window[name].getItem(`votestream.${key}`) ?? memory.get(key) ?? null;
      } catch {
        return memory.get(key) ?? null;
      }
    },
    /** Whether the value lasts longer than the page. */
    set(key, value) {
      memory.set(key, value);
      try {
        window[name].setItem(`votestream.${key}`, value);
        return true;
      } catch {
        return false;
      }
    },
    remove(key) {
      memory.delete(key);
      try {
        window[name].removeItem(`votestream.${key}`);
      } catch {
        // It was in memory alone.
      }
    },
  };
}

const ofTab = storage("sessionStorage");
const ofBrowser = storage("localStorage");
let lasts = true;

function takeToken() {
  const [, token] = FRAGMENT.exec(location.hash) ?? [];
  if (!token) return false;
  history.replaceState(history.state, "", location.pathname + location.search);
  // Another person may have the next token: what was remembered for the one before is not theirs.
  if (ofTab.get("token") !== token) ofTab.remove("votes");
  lasts = ofTab.set("token", token);
  return true;
}

takeToken();
// Another link with a token was opened in this tab.
addEventListener("hashchange", () => takeToken() && location.reload());
// Where nothing is stored, the token moves to the next view of this page behind `#`.
addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href^='/']");
  if (!link || lasts || !hasToken() || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  location.assign(`${link.getAttribute("href")}#token=${ofTab.get("token")}`);
});

export const hasToken = () => ofTab.get("token") !== null;

/** The headers that say who calls. */
export const credentials = () => (hasToken() ? { Authorization: `Bearer ${ofTab.get("token")}` } : {});

/** A random id that makes this browser one voter where nobody asks for a token. */
export function browserUser() {
  let user = ofBrowser.get("user");
  if (!user) {
    // `randomUUID` exists on https and localhost alone.
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    user = crypto.randomUUID?.() ?? Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    ofBrowser.set("user", user);
  }
  return user;
}

const votes = () => (hasToken() ? ofTab : ofBrowser);
const VOTES_KEPT = 50;

function kept() {
  try {
    return JSON.parse(votes().get("votes")) ?? [];
  } catch {
    return [];
  }
}

// A poll that was deleted and made again opens at another time.
const same = (poll) => (vote) => vote.poll === poll.poll_id && vote.opens === poll.opens_at;

/** Which option was last cast from here, or undefined. */
export const lastVote = (poll) => kept().find(same(poll))?.option;

export function rememberVote(poll, option) {
  const others = kept().filter((vote) => vote.poll !== poll.poll_id);
  const all = [{ poll: poll.poll_id, opens: poll.opens_at, option }, ...others];
  votes().set("votes", JSON.stringify(all.slice(0, VOTES_KEPT)));
}
