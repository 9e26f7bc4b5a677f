//! The same fan-out on tidemill and, in two ways, on tokio: each line is sent to all other members.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use tidemill::{ClosedInfo, ConnId, Input, Service, Shared, Socket, Sockets};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{broadcast, mpsc};

use crate::process::announce;

/// The members: each receives the lines of the others.
#[derive(Default)]
pub struct Lines {
    members: Vec<ConnId>,
}

impl Service for Lines {
    type Session = ();

    fn open(&mut self, socket: &mut Socket<'_>) {
        self.members.push(socket.id());
    }

    fn data(&mut self, _: &mut (), socket: &mut Socket<'_>, input: &mut Input<'_>) {
        let from = socket.id();
        while let Some(line) = input.take_line() {
            let line = Shared::from(line);
            for &member in self.members.iter().filter(|&&member| member != from) {
                if let Some(mut member) = socket.other(member) {
                    member.send_shared(&line);
                }
            }
        }
    }

    fn closed(&mut self, _: (), gone: &ClosedInfo, _: &mut Sockets<'_>) {
        self.members.retain(|&member| member != gone.id);
    }
}

/// As in tokio's chat example: one channel per member, and a map of their senders.
pub async fn mpsc(listener: TcpListener) {
    type Members = Arc<Mutex<HashMap<SocketAddr, mpsc::UnboundedSender<Arc<[u8]>>>>>;
    announce(listener.local_addr().expect("its address"));
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    let members = Members::default();
    loop {
        let Ok((stream, own)) = listener.accept().await else { continue };
        let (sender, mut receiver) = mpsc::unbounded_channel();
        members.lock().expect("a map").insert(own, sender);
        let members = members.clone();
        let (mut reader, mut writer) = split(stream);
        tokio::spawn(async move {
            while let Some(line) = receiver.recv().await {
                if writer.write_all(&line).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line).await, Ok(1..)) {
                let shared: Arc<[u8]> = line.as_slice().into();
                for (_, member) in members.lock().expect("a map").iter().filter(|(to, _)| **to != own) {
                    let _ = member.send(shared.clone());
                }
                line.clear();
            }
            members.lock().expect("a map").remove(&own);
        });
    }
}

/// With one broadcast channel.
pub async fn broadcast(listener: TcpListener) {
    announce(listener.local_addr().expect("its address"));
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    let (sender, _) = broadcast::channel::<(SocketAddr, Arc<[u8]>)>(1_024);
    loop {
        let Ok((stream, own)) = listener.accept().await else { continue };
        let (sender, mut receiver) = (sender.clone(), sender.subscribe());
        let (mut reader, mut writer) = split(stream);
        tokio::spawn(async move {
            while let Ok((from, line)) = receiver.recv().await {
                if from != own && writer.write_all(&line).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line).await, Ok(1..)) {
                let _ = sender.send((own, line.as_slice().into()));
                line.clear();
            }
        });
    }
}

fn split(stream: TcpStream) -> (BufReader<tokio::net::tcp::OwnedReadHalf>, tokio::net::tcp::OwnedWriteHalf) {
    let _ = stream.set_nodelay(true);
    let (reader, writer) = stream.into_split();
    (BufReader::new(reader), writer)
}
