//! What every call type does, with a key of whichever shard.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, IntoRequest, Request, Response, Status, Streaming};

use crate::echo::*;

const CALLS: usize = 150;
const CONNECTIONS: usize = 6;
/// From 256 bytes on h2 writes a DATA frame by itself: the empty one with END_STREAM follows in a packet of its own.
const MIDDLE: usize = 2_000;
const LARGE: usize = 1_900_000;
/// More than a server takes, by default.
const TOO_LARGE: usize = 5_000_000;
const SOON: Duration = Duration::from_millis(250);

/// Where a key has its home.
#[derive(Clone)]
pub struct Place {
    address: String,
    pub key: String,
    aside: String,
    shard: String,
}

impl Place {
    pub fn new(address: &str, parts: &[String]) -> Self {
        let [key, aside, shard] = parts else { panic!("KEY ASIDE SHARD") };
        Self { address: address.into(), key: key.clone(), aside: aside.clone(), shard: shard.clone() }
    }

    fn text(&self, text: &str) -> EchoRequest {
        EchoRequest { key: self.key.clone(), text: text.into(), ..Default::default() }
    }

    fn order(&self, order: &str) -> EchoRequest {
        EchoRequest { key: self.key.clone(), order: order.into(), ..Default::default() }
    }

    /// An order for the same shard in another key's turn.
    fn aside(&self, order: &str) -> EchoRequest {
        EchoRequest { key: self.aside.clone(), order: order.into(), ..Default::default() }
    }

    fn times(&self, times: u32, text: &str, order: &str) -> EchoRequest {
        EchoRequest { times, order: order.into(), ..self.text(text) }
    }
}

type Case = fn(Echo, Place) -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        vec![$((stringify!($name), (|echo, place| Box::pin($name(echo, place))) as Case)),*]
    };
}

pub fn all() -> Vec<(&'static str, Case)> {
    cases![
        unary,
        client_stream,
        server_stream,
        bidi,
        half_close_after_the_answers,
        plain_handlers,
        empty_stream,
        metadata,
        error,
        rich_error,
        error_of_an_upload,
        unknown_method,
        deadline,
        deadline_of_a_stream,
        cancel,
        cancel_of_a_stream,
        large,
        too_large,
        gzip,
        many_at_once,
        one_after_another,
        first_calls,
    ]
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(String::from).collect()
}

fn requests(place: &Place, texts: &str) -> impl tokio_stream::Stream<Item = EchoRequest> + Send + 'static {
    tokio_stream::iter(words(texts).iter().map(|text| place.text(text)).collect::<Vec<_>>())
}

async fn all_of(answers: Response<Streaming<EchoReply>>) -> (Vec<EchoReply>, MetadataMap) {
    let mut answers = answers.into_inner();
    let mut replies = Vec::new();
    while let Some(reply) = answers.message().await.unwrap() {
        replies.push(reply);
    }
    (replies, answers.trailers().await.unwrap().unwrap_or_default())
}

fn assert_owner(place: &Place, trailers: &MetadataMap) {
    assert_eq!(trailers.get("onelane-shard").unwrap(), place.shard.as_str());
}

async fn unary(mut echo: Echo, place: Place) {
    let reply = echo.unary(UNARY, traced(place.text("ünïcode"))).await.unwrap();
    assert_owner(&place, reply.metadata());
    assert_eq!((reply.get_ref().text.as_str(), &reply.get_ref().shard), ("ünïcode", &place.shard));
}

async fn client_stream(mut echo: Echo, place: Place) {
    let reply = echo.upload(UPLOAD, traced(requests(&place, "a b c"))).await.unwrap();
    assert_owner(&place, reply.metadata());
    assert_eq!((reply.get_ref().text.as_str(), &reply.get_ref().shard), ("a,b,c", &place.shard));
}

async fn server_stream(mut echo: Echo, place: Place) {
    let answers = echo.download(DOWNLOAD, traced(place.times(3, "d", ""))).await.unwrap();
    let (replies, trailers) = all_of(answers).await;
    assert_owner(&place, &trailers);
    let seen: Vec<_> = replies.iter().map(|reply| (reply.text.as_str(), reply.shard.as_str())).collect();
    assert_eq!(seen, vec![("d", place.shard.as_str()); 3]);
}

/// Each request but the first leaves once the answer to the last has come.
async fn ping_pong(mut echo: Echo, path: &'static str, place: &Place, texts: Vec<String>) -> MetadataMap {
    let (sender, receiver) = mpsc::channel(1);
    sender.send(place.text(&texts[0])).await.unwrap();
    let mut answers = echo.chat(path, traced(ReceiverStream::new(receiver))).await.unwrap().into_inner();
    for (index, text) in texts.iter().enumerate() {
        let reply = answers.message().await.unwrap().unwrap();
        assert!(reply.text == *text, "another text");
        assert_eq!(reply.shard, place.shard);
        if let Some(next) = texts.get(index + 1) {
            sender.send(place.text(next)).await.unwrap();
        }
    }
    drop(sender);
    assert_eq!(answers.message().await.unwrap(), None);
    answers.trailers().await.unwrap().unwrap_or_default()
}

async fn bidi(echo: Echo, place: Place) {
    let trailers = ping_pong(echo, CHAT, &place, words("x y z")).await;
    assert_owner(&place, &trailers);
}

/// An empty DATA frame with END_STREAM, long after the last message.
async fn half_close_after_the_answers(mut echo: Echo, place: Place) {
    let (sender, receiver) = mpsc::channel(1);
    sender.send(place.text("a")).await.unwrap();
    let upload = {
        let mut echo = echo.clone();
        tokio::spawn(async move { echo.upload(UPLOAD, ReceiverStream::new(receiver)).await })
    };
    echo.unary(UNARY, place.text("between")).await.unwrap();
    sender.send(place.text("b")).await.unwrap();
    echo.unary(UNARY, place.text("between")).await.unwrap();
    drop(sender);
    assert_eq!(upload.await.unwrap().unwrap().get_ref().text, "a,b");
}

async fn plain_handlers(mut echo: Echo, place: Place) {
    let reply = echo.unary(PLAIN, traced(place.text("p"))).await.unwrap();
    assert_owner(&place, reply.metadata());
    assert_eq!(reply.get_ref().text, "p");
    let reply = echo.upload(PLAIN_UPLOAD, requests(&place, "a b")).await.unwrap();
    assert_eq!((reply.get_ref().text.as_str(), &reply.get_ref().shard), ("a,b", &place.shard));
    ping_pong(echo.clone(), PLAIN_CHAT, &place, words("x y")).await;
    let status = echo.unary(PLAIN, place.order("abort")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "plain abort"));
}

/// Without a message there is no key.
async fn empty_stream(mut echo: Echo, _: Place) {
    let status = echo.upload(UPLOAD, tokio_stream::empty()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
}

async fn metadata(mut echo: Echo, place: Place) {
    let mut request = traced(place.order("metadata"));
    request.metadata_mut().insert("x-there", "back again".parse().unwrap());
    request.metadata_mut().insert_bin("x-there-bin", MetadataValue::from_bytes(b"\x00\xff\x00"));
    let reply = echo.unary(MISBEHAVE, request).await.unwrap();
    assert_owner(&place, reply.metadata());
    // tonic gives the initial metadata of a unary answer and its trailers as one.
    assert_eq!(reply.metadata().get("x-initial").unwrap(), "first");
    assert_eq!(reply.metadata().get("x-back").unwrap(), "back again");
    assert_eq!(reply.metadata().get_bin("x-back-bin").unwrap().to_bytes().unwrap(), &b"\x00\xff\x00"[..]);
}

async fn refused(echo: &mut Echo, request: impl IntoRequest<EchoRequest>) -> Status {
    echo.unary(MISBEHAVE, request).await.unwrap_err()
}

async fn error(mut echo: Echo, place: Place) {
    let status = refused(&mut echo, traced(place.order("abort"))).await;
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no such thing: ünïcode"));
    assert_eq!(status.metadata().get("x-why").unwrap(), "aborted");
    assert_owner(&place, status.metadata());
    let status = refused(&mut echo, place.order("raise boom")).await;
    assert_eq!(status.code(), Code::Internal);
}

async fn rich_error(mut echo: Echo, place: Place) {
    let status = refused(&mut echo, place.order("rich")).await;
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "rich"));
    let details = String::from_utf8_lossy(status.details());
    assert!(details.contains("type.googleapis.com/google.rpc.ErrorInfo"), "{details}");
    assert!(details.contains("BECAUSE"), "{details}");
}

/// The status comes although the client has not ended its side.
async fn error_of_an_upload(mut echo: Echo, place: Place) {
    let (sender, receiver) = mpsc::channel(1);
    sender.send(place.order("abort")).await.unwrap();
    let status = echo.upload(UPLOAD, ReceiverStream::new(receiver)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no such thing: ünïcode"));
    assert_eq!(status.metadata().get("x-why").unwrap(), "aborted");
    drop(sender);
}

async fn unknown_method(mut echo: Echo, place: Place) {
    assert_eq!(echo.unary(UNKNOWN, place.text("")).await.unwrap_err().code(), Code::Unimplemented);
    let status = echo.chat(UNKNOWN, requests(&place, "a b")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

async fn deadline(mut echo: Echo, place: Place) {
    let mut request = Request::new(place.order("sleep 60"));
    request.set_timeout(SOON);
    let status = refused(&mut echo, request).await;
    // The server's word, or that of tonic's own timer.
    let words = (status.code(), status.message());
    assert!(status.code() == Code::DeadlineExceeded || words == (Code::Cancelled, "Timeout expired"), "{status:?}");
    // The turn of the key is free again.
    let mut request = Request::new(place.text("in time"));
    request.set_timeout(Duration::from_secs(20));
    assert_eq!(echo.unary(UNARY, request).await.unwrap().get_ref().text, "in time");
}

async fn deadline_of_a_stream(mut echo: Echo, place: Place) {
    let mut answers = loop {
        let mut request = Request::new(place.times(1, "d", "forever"));
        request.set_timeout(SOON);
        let Ok(answers) = echo.download(DOWNLOAD, request).await else { continue };
        let mut answers = answers.into_inner();
        // On a busy machine the deadline may pass before the first answer: then once more.
        match answers.message().await {
            Ok(_) => break answers,
            Err(status) => assert_eq!(status.code(), Code::DeadlineExceeded),
        }
    };
    assert_eq!(answers.message().await.unwrap_err().code(), Code::DeadlineExceeded);
}

/// The turn of the key is free again.
async fn cancel(mut echo: Echo, place: Place) {
    let waited = format!("tonic-{}", place.key);
    let call = {
        let (mut echo, request) = (echo.clone(), place.order(&format!("wait {waited}")));
        tokio::spawn(async move { echo.unary(MISBEHAVE, request).await })
    };
    loop {
        let reply = echo.unary(MISBEHAVE, place.aside("began")).await.unwrap();
        let began = reply.metadata().get("x-began").unwrap().to_str().unwrap();
        if began.split(' ').any(|key| key == waited) {
            break;
        }
    }
    call.abort();
    assert_eq!(echo.unary(UNARY, place.text("next")).await.unwrap().get_ref().text, "next");
}

async fn cancel_of_a_stream(mut echo: Echo, place: Place) {
    drop(hold(echo.clone(), &place).await);
    let (sender, receiver) = mpsc::channel(1);
    sender.send(place.text("a")).await.unwrap();
    let mut answers = echo.chat(CHAT, ReceiverStream::new(receiver)).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().text, "a");
    drop(answers);
    // tonic resets a stream once neither side of it is held.
    drop(sender);
}

async fn large(mut echo: Echo, place: Place) {
    let text = "l".repeat(LARGE);
    assert!(echo.unary(UNARY, place.text(&text)).await.unwrap().get_ref().text == text);
    let uploads = tokio_stream::iter(vec![place.text(&text); 2]);
    assert_eq!(echo.upload(UPLOAD, uploads).await.unwrap().get_ref().text.len(), 2 * LARGE + 1);
    let (replies, _) = all_of(echo.download(DOWNLOAD, place.times(3, &text, "")).await.unwrap()).await;
    assert!(replies.len() == 3 && replies.iter().all(|reply| reply.text == text));
    ping_pong(echo, CHAT, &place, vec![text; 3]).await;
}

async fn too_large(mut echo: Echo, place: Place) {
    let status = echo.unary(UNARY, place.text(&"l".repeat(TOO_LARGE))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    // The connection is as good as before.
    echo.unary(UNARY, place.text("next")).await.unwrap();
}

async fn gzip(echo: Echo, place: Place) {
    let mut echo = echo.gzip();
    let text = "gzip ".repeat(20_000);
    assert!(echo.unary(UNARY, place.text(&text)).await.unwrap().get_ref().text == text);
    let uploads = tokio_stream::iter(vec![place.text(&text); 3]);
    assert_eq!(echo.upload(UPLOAD, uploads).await.unwrap().get_ref().text.len(), 3 * text.len() + 2);
    let answers = echo.download(DOWNLOAD, place.times(3, &text, "gzip")).await.unwrap();
    let encoding = answers.metadata().get("grpc-encoding").cloned();
    let (replies, _) = all_of(answers).await;
    assert_eq!(encoding.unwrap(), "gzip");
    assert!(replies.len() == 3 && replies.iter().all(|reply| reply.text == text));
    ping_pong(echo, CHAT, &place, vec![text; 3]).await;
}

async fn many_at_once(echo: Echo, place: Place) {
    let mut calls = JoinSet::new();
    for number in 0..CALLS {
        let (mut echo, request) = (echo.clone(), place.text(&format!("{number:0MIDDLE$}")));
        calls.spawn(async move {
            let reply = echo.unary(UNARY, request).await.unwrap();
            assert_eq!(reply.get_ref().text.parse(), Ok(number));
            reply.into_inner().shard
        });
    }
    assert!(calls.join_all().await.iter().all(|shard| *shard == place.shard));
}

async fn one_after_another(mut echo: Echo, place: Place) {
    for number in 0..CALLS {
        let text = format!("{number:0MIDDLE$}");
        let reply = echo.unary(UNARY, place.text(&text)).await.unwrap();
        assert_eq!((&reply.get_ref().text, &reply.get_ref().shard), (&text, &place.shard));
    }
}

/// The first call of a connection decides where it ends.
async fn first_calls(_: Echo, place: Place) {
    for number in 0..CONNECTIONS {
        let mut echo = Echo::connect(&place.address).await;
        if number % 2 == 0 {
            let text = "first".repeat(MIDDLE);
            let reply = echo.unary(UNARY, place.text(&text)).await.unwrap();
            assert_eq!((&reply.get_ref().text, &reply.get_ref().shard), (&text, &place.shard));
        } else {
            ping_pong(echo.clone(), CHAT, &place, words("first second")).await;
        }
        assert_eq!(echo.unary(UNARY, place.text("next")).await.unwrap().get_ref().shard, place.shard);
    }
}

/// A stream of which only the first answer comes.
pub async fn hold(mut echo: Echo, place: &Place) -> Streaming<EchoReply> {
    let mut answers = echo.download(DOWNLOAD, place.times(1, "d", "forever")).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().text, "d");
    answers
}
