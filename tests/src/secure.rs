//! Clients of TLS by hand: for plays about handshakes, and about bytes that no good client sends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};

use crate::{PATIENCE, Peer, Transport};

/// A connection that waits for its peer with patience.
pub fn tcp(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything until the end of the connection, a reset included.
pub fn rest(stream: &mut impl Read) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        all.extend_from_slice(&buffer[..count]);
    }
    all
}

/// A client inside TLS, where the other side expects `lb.test`.
pub struct SecureClient {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl SecureClient {
    /// Connects, shakes hands, and asks one question by OPTIONS.
    ///
    /// # Errors
    ///
    /// What the handshake or its end came to.
    pub fn ask(config: &Arc<ClientConfig>, to: SocketAddr) -> Result<SecureClient, String> {
        let name = ServerName::try_from("lb.test").unwrap();
        let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
        let mut client = SecureClient { stream: StreamOwned::new(connection, tcp(to)) };
        let request = Peer::bind("x").over(Transport::Tls).request("OPTIONS", "sip:bob@here.com");
        client.say(&request.to_bytes())?;
        Ok(client)
    }

    /// Says something, and returns how the answer begins. A question of SIP on a port of WebSocket is
    /// answered, too: by 400.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn say(&mut self, bytes: &[u8]) -> Result<String, String> {
        self.stream.write_all(bytes).map_err(|it| it.to_string())?;
        let mut buffer = vec![0; 4096];
        let count = self.stream.read(&mut buffer).map_err(|it| it.to_string())?;
        if count == 0 {
            return Err("the end".to_owned());
        }
        Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
    }

    /// Whether its session was resumed.
    pub fn is_resumed(&self) -> bool {
        self.stream.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The certificate that it was shown.
    pub fn shown(&self) -> rustls::pki_types::CertificateDer<'static> {
        self.stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
    }

    /// What ALPN agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.stream.conn.alpn_protocol()
    }
}

impl std::fmt::Debug for SecureClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a client that was served")
    }
}
