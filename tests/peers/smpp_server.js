// An SMSC made of the npm package `smpp`. Argument: port of 127.0.0.1. Accepts every bind, gives every
// message an id and sends the receipt for it. One line for each event.
const smpp = require('smpp');

let ids = 0;
const server = smpp.createServer((session) => {
  session.on('error', () => {});
  for (const bind of ['bind_transceiver', 'bind_transmitter', 'bind_receiver']) {
    session.on(bind, (pdu) => {
      session.send(pdu.response({ system_id: 'npm' }));
      console.log(bind, pdu.system_id);
    });
  }
  session.on('submit_sm', (pdu) => {
    const id = `${process.argv[2]}x${++ids}`;
    session.send(pdu.response({ message_id: id }));
    console.log('submit_sm', pdu.destination_addr, pdu.short_message.message);
    session.deliver_sm({
      esm_class: 4,
      source_addr: pdu.destination_addr,
      destination_addr: pdu.source_addr,
      receipted_message_id: id,
      message_state: 2,
      short_message: `id:${id} sub:001 dlvrd:001 submit date:2601011200 done date:2601011201 stat:DELIVRD err:000 text:`,
    }, (answer) => console.log('deliver_sm_resp', answer.command_status));
  });
  session.on('enquire_link', (pdu) => session.send(pdu.response()));
  session.on('unbind', (pdu) => {
    session.send(pdu.response());
    session.close();
    console.log('unbind');
  });
});
server.on('error', (error) => { throw error; });
server.listen({ port: Number(process.argv[2]), host: '127.0.0.1' }, () => console.log('ready'));
