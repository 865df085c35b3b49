// Who calls: the token of this tab, or the random user id of this browser. Remembers what was voted from here.
// A token must never get into a query, a log, the document, or storage that outlives the tab.

// Browsers keep what is behind `#` to themselves.
const FRAGMENT = /^#(?:token=)?([\w.~+/=-]{16,})$/;

/** Storage may be blocked, in a frame for instance. Then values last as long as the page. */
function storage(name) {
  const memory = {};
  const attempt = (use) => {
    try {
      return use(window[name]);
    } catch {
      return null;
    }
  };
  return {
    get: (key) => attempt((stored) => stored.getItem(`votestream.${key}`)) ?? memory[key],
    set(key, value) {
      memory[key] = value;
      attempt((stored) => stored.setItem(`votestream.${key}`, value));
    },
  };
}

const ofTab = storage("sessionStorage");
const ofBrowser = storage("localStorage");

function takeToken() {
  const token = FRAGMENT.exec(location.hash)?.[1];
  if (!token) return false;
  history.replaceState(null, "", location.pathname + location.search);
  // What was voted with another token is another person's.
  if (ofTab.get("token") !== token) ofTab.set("votes", "{}");
  ofTab.set("token", token);
  return true;
}

takeToken();
addEventListener("hashchange", () => takeToken() && location.reload());

export const hasToken = () => Boolean(ofTab.get("token"));

/** The headers that say who calls. */
export const credentials = () => (hasToken() ? { Authorization: `Bearer ${ofTab.get("token")}` } : {});

/** A random id that makes this browser one voter where nobody asks for a token. */
export function browserUser() {
  // `randomUUID` is missing on plain http.
  if (!ofBrowser.get("user")) ofBrowser.set("user", [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(36)).join("-"));
  return ofBrowser.get("user");
}

const votes = () => (hasToken() ? ofTab : ofBrowser);
const allVotes = () => JSON.parse(votes().get("votes") ?? "{}");
// A poll that was made again under the same id opens at another time.
const keyOf = (poll) => `${poll.poll_id} ${poll.opens_at}`;

/** Which option was last cast from here, or undefined. */
export const lastVote = (poll) => allVotes()[keyOf(poll)];
export const rememberVote = (poll, option) => votes().set("votes", JSON.stringify({ ...allVotes(), [keyOf(poll)]: option }));
