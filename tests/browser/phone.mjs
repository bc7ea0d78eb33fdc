// A browser phone: SIP.js, which nobody here wrote. The driver calls what is on `window.phone`, and reads
// what became of it.
import * as SIP from "/sip.js/index.js";

const media = { sessionDescriptionHandlerOptions: { constraints: { audio: true, video: false } } };

class Phone {
  constructor(user, server) {
    this.events = [];
    this.agent = new SIP.UserAgent({
      uri: SIP.UserAgent.makeURI(`sip:${user}@example.com`),
      // Seconds. Five, the default, are too few where several browsers start on two cores.
      transportOptions: { server, connectionTimeout: 120 },
      // No servers: everything is on this machine.
      sessionDescriptionHandlerFactoryOptions: {
        iceGatheringTimeout: 500,
        peerConnectionConfiguration: { iceServers: [] },
      },
      logBuiltinEnabled: false,
      delegate: {
        onInvite: (invitation) => {
          this.follow(invitation);
          invitation.accept(media);
        },
        onMessage: (message) => {
          this.events.push(`message ${message.request.body}`);
          message.accept();
        },
        onDisconnect: () => this.events.push("disconnected"),
      },
    });
  }

  async register() {
    await this.agent.start();
    const registerer = new SIP.Registerer(this.agent);
    await new Promise((resolve, reject) => {
      registerer.stateChange.addListener((state) => state === "Registered" && resolve());
      registerer
        .register({ requestDelegate: { onReject: (it) => reject(new Error(it.message.reasonPhrase)) } })
        .catch(reject);
    });
  }

  async call(user) {
    const session = new SIP.Inviter(this.agent, SIP.UserAgent.makeURI(`sip:${user}@example.com`), media);
    this.follow(session);
    await session.invite();
  }

  follow(session) {
    this.session = session;
    session.stateChange.addListener((state) => this.events.push(state));
    session.delegate = {
      onInfo: (info) => {
        this.events.push(`info ${info.request.body}`);
        info.accept();
      },
    };
  }

  async info(text) {
    const body = { contentDisposition: "render", contentType: "text/plain", content: text };
    await this.session.info({ requestOptions: { body } });
  }

  async bye() {
    await this.session.bye();
  }

  // Resolves once an event has happened, and forgets it.
  async expect(event) {
    for (;;) {
      const at = this.events.indexOf(event);
      if (at >= 0) return this.events.splice(at, 1);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
}

window.open_phone = (user, server) => {
  window.phone = new Phone(user, server);
};
window.is_ready = true;
