// An ESME made of the npm package `smpp`. Arguments: URL, system_id, count of messages, window. Submits
// them, waits for as many responses and receipts of its own messages, unbinds. Exit code 0 says that all came
// once.
const smpp = require('smpp');

const [url, systemId, countText, windowText] = process.argv.slice(2);
const [count, window] = [Number(countText), Number(windowText)];
const fail = (why) => { console.log('failed:', why); process.exit(1); };
const session = smpp.connect({ url, rejectUnauthorized: false });
session.on('error', (error) => fail(error.message));
const [ids, receipts] = [new Set(), new Set()];
let asked = 0;
let answered = 0;

function more() {
  while (asked < count && asked - answered < window) {
    asked += 1;
    session.submit_sm(
      { source_addr: systemId, destination_addr: '4455', short_message: `from ${systemId}` },
      (pdu) => {
        if (pdu.command_status !== 0) fail(`status ${pdu.command_status}`);
        if (ids.has(pdu.message_id)) fail(`twice ${pdu.message_id}`);
        ids.add(pdu.message_id);
        answered += 1;
        more();
        done();
      },
    );
  }
}

function done() {
  if (answered < count || receipts.size < count) return;
  for (const id of receipts) if (!ids.has(id)) fail(`somebody else's receipt ${id}`);
  session.unbind((pdu) => {
    console.log('done', answered, receipts.size);
    process.exit(pdu.command_status);
  });
}

session.on('deliver_sm', (pdu) => {
  session.send(pdu.response());
  const id = /id:(\S+)/.exec(pdu.short_message.message)[1];
  if (receipts.has(id)) fail(`receipt twice ${id}`);
  receipts.add(id);
  done();
});
session.on('enquire_link', (pdu) => session.send(pdu.response()));
session.on('connect', bind);
session.on('secureConnect', bind);
let isBinding = false;
function bind() {
  if (isBinding) return;
  isBinding = true;
  session.bind_transceiver({ system_id: systemId, password: 'secret' }, (pdu) => {
    if (pdu.command_status !== 0) fail(`bind ${pdu.command_status}`);
    more();
  });
}
