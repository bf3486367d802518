use std::net::Ipv4Addr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Semaphore,
};

use super::*;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Runs `check` with an endpoint whose agent has no metrics and says why. The semaphore counts the
/// queries.
fn with_endpoint<F: Future<Output = ()>>(check: impl FnOnce(SocketAddr, Arc<Semaphore>) -> F) {
    let runtime = super::super::runtime().unwrap();
    runtime.block_on(async {
        let taken = TcpListener::bind(ANY).await.unwrap();
        let at = taken.local_addr().unwrap();
        let (commands, mut asked) = mpsc::channel(1);
        let reserve = DescriptorReserve::set_aside();
        assert!(
            Endpoint::open(at, reserve, commands.clone()).is_err(),
            "taken"
        );
        drop(taken);
        let endpoint = Endpoint::open(at, reserve, commands).unwrap();
        let count = Arc::new(Semaphore::new(0));
        let counted = Arc::clone(&count);
        tokio::spawn(async move {
            while let Some(command) = asked.recv().await {
                counted.add_permits(1);
                if let Command::Metrics(reply) = command {
                    drop(reply.send(Err("a map\ncannot be read".to_owned())));
                }
            }
        });
        check(at, count).await;
        drop(endpoint);
        // The listener ends with it.
        for _ in 0..100 {
            if TcpStream::connect(at).await.is_err() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("it listens still");
    });
}

/// Everything that comes back for these bytes until the connection ends.
async fn answer_to(at: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    // The connection may have been refused before the request was read.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
}

#[test]
fn requests_are_answered_and_others_refused() {
    with_endpoint(|at, asked| async move {
        let answer = answer_to(at, &get("/metrics")).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(
            answer.ends_with("\r\n\r\na map\\ncannot be read\n"),
            "{answer}"
        );
        assert!(answer.contains("connection: close"), "{answer}");
        assert_eq!(asked.available_permits(), 1);
        for (request, status) in [
            (get("/"), "HTTP/1.1 404"),
            (get("/metrics/../etc"), "HTTP/1.1 404"),
            (
                b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na".to_vec(),
                "HTTP/1.1 405",
            ),
            (b"\0\x01\x02\r\n\r\n".to_vec(), "HTTP/1.1 400"),
            (get(&format!("/{}", "a".repeat(MAX_HEAD))), "HTTP/1.1 4"),
            (
                format!(
                    "GET /metrics HTTP/1.1\r\n{}\r\n",
                    "a: b\r\n".repeat(MAX_HEADERS + 1)
                )
                .into_bytes(),
                "HTTP/1.1 431",
            ),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), ""),
        ] {
            let answer = answer_to(at, &request).await;
            assert!(answer.starts_with(status), "{status}: {answer}");
        }
        assert_eq!(
            asked.available_permits(),
            1,
            "the agent is asked for metrics only"
        );
    });
}

/// A new connection displaces the oldest, and an idle one is dropped.
#[test]
fn no_client_can_block_the_endpoint() {
    with_endpoint(|at, _| async move {
        let mut silent = Vec::new();
        for _ in 0..3 * SCRAPES {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(b"GET /metr").await.unwrap();
            silent.push(stream);
        }
        let began = Instant::now();
        let answer = answer_to(at, &get("/metrics")).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(
            began.elapsed() < REQUEST_TIMEOUT / 2,
            "{:?}",
            began.elapsed()
        );
        let mut last = silent.pop().unwrap();
        let mut rest = Vec::new();
        let end = timeout(2 * REQUEST_TIMEOUT, last.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "it has {REQUEST_TIMEOUT:?} to ask");
    });
}
