// Drives browser phones in a headless Chromium, as lines on standard input say:
//
//     open NAME USER SERVER      a page with a phone, registered at a wss: or ws: address
//     call NAME USER             invite
//     info NAME TEXT             within the call
//     bye NAME
//     expect NAME EVENT          wait for it: Established, Terminated, info ..., message ..., disconnected
//
// Each is answered by one line, `ok` or what went wrong. Ends with its input.
import { createServer } from "node:http";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, normalize } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const here = dirname(fileURLToPath(import.meta.url));
const library = join(here, "node_modules", "sip.js", "lib");
const types = { html: "text/html", js: "text/javascript", mjs: "text/javascript" };

const server = createServer(async (request, response) => {
  const path = normalize(new URL(request.url, "http://localhost").pathname);
  const file = path.startsWith("/sip.js/") ? join(library, path.slice(8)) : join(here, path);
  try {
    const body = await readFile(file);
    response.writeHead(200, { "Content-Type": types[path.split(".").pop()] ?? "text/plain" });
    response.end(body);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));

const profile = await mkdtemp(join(tmpdir(), "trunkline-chromium-"));
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: process.argv[2],
  headless: true,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--ignore-certificate-errors",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
  ],
});

// How long anything may take is the test's affair, which knows what it waits for.
browser.setDefaultTimeout(0);

const pages = new Map();
const phone = (name, method, ...words) =>
  pages.get(name).evaluate(([method, words]) => window.phone[method](...words), [method, words]);

const commands = {
  async open(name, user, address) {
    const page = await browser.newPage();
    page.on("console", (line) => console.error(`${name}: ${line.text()}`));
    pages.set(name, page);
    await page.goto(`http://127.0.0.1:${server.address().port}/phone.html`);
    await page.waitForFunction(() => window.is_ready);
    await page.evaluate(([user, address]) => window.open_phone(user, address), [user, address]);
    await phone(name, "register");
  },
  call: (name, user) => phone(name, "call", user),
  info: (name, ...words) => phone(name, "info", words.join(" ")),
  bye: (name) => phone(name, "bye"),
  expect: (name, ...words) => phone(name, "expect", words.join(" ")),
};

console.log("ready");
for await (const line of createInterface({ input: process.stdin })) {
  const [command, ...words] = line.split(" ");
  try {
    await commands[command](...words);
    console.log("ok");
  } catch (error) {
    console.log(String(error).replaceAll("\n", " "));
  }
}
await browser.close();
server.close();
await rm(profile, { recursive: true, force: true });
