//! What stands for TLS and SCRAM where the program is built without them: types
//! of which there is no value, and the problem that says so.

pub(crate) mod tls {
    use std::collections::BTreeMap;
    use std::io;

    use mio::net::TcpStream;

    use crate::error::Problem;
    use crate::kafka::security::{TlsFault, Unusable};

    #[derive(Clone, Debug)]
    pub(crate) enum Tls {}

    impl Tls {
        pub(crate) fn of(properties: &BTreeMap<String, String>) -> Result<Self, Unusable> {
            let protocol = properties.get("security.protocol");
            Err(Unusable::Wrong(vec![Problem::new(
                "security.protocol",
                protocol.map_or("", String::as_str),
                "this program was built without the feature ssl",
                "build it with --features ssl, or use a listener without TLS",
            )]))
        }

        pub(crate) fn is_unverified(&self) -> bool {
            match *self {}
        }

        pub(crate) fn open(&self, _host: &str) -> Result<TlsStream, TlsFault> {
            match *self {}
        }
    }

    #[derive(Debug)]
    pub(crate) enum TlsStream {}

    impl TlsStream {
        pub(crate) fn handshake(&mut self, _socket: &mut TcpStream) -> io::Result<bool> {
            match *self {}
        }

        pub(crate) fn read(&mut self, _: &mut TcpStream, _: &mut [u8]) -> io::Result<usize> {
            match *self {}
        }

        pub(crate) fn write(&mut self, _: &mut TcpStream, _: &[u8]) -> io::Result<usize> {
            match *self {}
        }

        pub(crate) fn flush(&mut self, _: &mut TcpStream) -> io::Result<()> {
            match *self {}
        }
    }
}

pub(crate) mod scram {
    use std::ops::RangeInclusive;
    use std::sync::Arc;

    use crate::kafka::sasl::{Credentials, SaslFault};

    pub(crate) const ROUNDS: RangeInclusive<u32> = 4_096..=1_000_000;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Hash {
        Sha256,
        Sha512,
    }

    /// Never made: settings that ask for it are refused before.
    #[derive(Debug)]
    pub(crate) enum Scram {}

    impl Scram {
        pub(crate) fn begin(_: Hash, _: &Arc<Credentials>) -> Result<(Self, Vec<u8>), SaslFault> {
            Err(SaslFault::NoRandom)
        }

        pub(crate) fn answer(&mut self, _: &[u8]) -> Result<Option<Vec<u8>>, SaslFault> {
            match *self {}
        }
    }
}
