//! TLS for listeners, dials and running connections, by rustls.
