"""An ESME made of the PyPI package `smpplib`. Arguments: port of 127.0.0.1, system_id, count of messages.

Submits them, waits for as many responses and receipts of its own messages, unbinds. Exit code 0 says that all
came once.
"""

import re
import sys

import smpplib.client
import smpplib.consts

port, system_id, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ids, receipts = [], []
client = smpplib.client.Client("127.0.0.1", port, timeout=20, allow_unknown_opt_params=True)


def on_sent(pdu):
    ids.append(pdu.message_id.decode())


def on_received(pdu):
    receipts.append(re.search(rb"id:(\S+)", pdu.short_message).group(1).decode())
    return smpplib.consts.SMPP_ESME_ROK


client.set_message_sent_handler(on_sent)
client.set_message_received_handler(on_received)
client.connect()
client.bind_transceiver(system_id=system_id, password="secret")
for _ in range(count):
    client.send_message(
        source_addr_ton=smpplib.consts.SMPP_TON_INTL,
        source_addr=system_id,
        dest_addr_ton=smpplib.consts.SMPP_TON_INTL,
        destination_addr="4455",
        short_message=b"from " + system_id.encode(),
        registered_delivery=True,
    )
while len(ids) < count or len(receipts) < count:
    client.read_once()
client.unbind()
client.disconnect()
print("done", len(ids), len(receipts))
sys.exit(0 if len(set(ids)) == count and sorted(ids) == sorted(receipts) else 1)
