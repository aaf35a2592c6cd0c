//! The reference service on tonic, on one thread: the body that every server of the benchmark runs. Its service is
//! written as tonic's generator writes one, without `protoc`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::task::{Context, Poll};

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct EchoRequest {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    text: String,
    #[prost(uint32, tag = "3")]
    times: u32,
    #[prost(string, tag = "4")]
    order: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EchoReply {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(string, tag = "2")]
    shard: String,
    #[prost(uint32, tag = "3")]
    seen: u32,
}

thread_local! {
    /// There is one thread, so nothing needs a lock.
    static SEEN: RefCell<HashMap<String, u32>> = RefCell::default();
}

fn reply(request: &EchoRequest) -> EchoReply {
    let seen = SEEN.with_borrow_mut(|seen| {
        let count = seen.entry(request.key.clone()).or_default();
        *count += 1;
        *count
    });
    EchoReply { text: request.text.clone(), shard: "tonic".into(), seen }
}

struct Unary;

impl UnaryService<EchoRequest> for Unary {
    type Response = EchoReply;
    type Future = BoxFuture<Response<EchoReply>, Status>;

    fn call(&mut self, request: Request<EchoRequest>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(reply(request.get_ref()))) })
    }
}

type Replies = tokio_stream::Iter<std::vec::IntoIter<Result<EchoReply, Status>>>;

struct Download;

impl ServerStreamingService<EchoRequest> for Download {
    type Response = EchoReply;
    type ResponseStream = Replies;
    type Future = BoxFuture<Response<Replies>, Status>;

    fn call(&mut self, request: Request<EchoRequest>) -> Self::Future {
        Box::pin(async move {
            let request = request.get_ref();
            let replies: Vec<_> = (0..request.times).map(|_| Ok(reply(request))).collect();
            Ok(Response::new(tokio_stream::iter(replies)))
        })
    }
}

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "echo.v1.Echo";
}

impl<B> Service<http::Request<B>> for Echo
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let mut grpc = Grpc::new(ProstCodec::default());
        match request.uri().path() {
            "/echo.v1.Echo/Unary" => Box::pin(async move { Ok(grpc.unary(Unary, request).await) }),
            "/echo.v1.Echo/Download" => Box::pin(async move { Ok(grpc.server_streaming(Download, request).await) }),
            _ => Box::pin(async { Ok(Status::unimplemented("").into_http()) }),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let connections = TcpListenerStream::new(listener);
    Server::builder().add_service(Echo).serve_with_incoming(connections).await.unwrap();
}
