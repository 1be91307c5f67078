//! Pages of a cluster that `initdb` made, served over the wire, against its files; and the life of a timeline
//! over HTTP.

#![expect(clippy::unwrap_used, reason = "a test program fails by panicking")]

mod common;

use common::{
    Pages, TENANT, TIMELINE, blocks, config, import_cluster, new_cluster, open_tempdir,
    relation_files,
};
use page_protocol::{Payload, RequestKind};
use pageserver::Server;
use pg_types::{Lsn, SlruKind, TimelineId};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn every_page_of_a_new_cluster_is_served_as_it_is_in_its_files() {
    let dir = open_tempdir();
    let pgdata = new_cluster(dir.path());
    let config = config(dir.path());
    let start_lsn = import_cluster(&pgdata, &config);
    let server = Server::start(config).await.unwrap();
    let mut pages = Pages::open(&server, TIMELINE).await;
    let files = relation_files(&pgdata);
    assert!(files.len() > 300, "{} files", files.len());
    let mut compared = 0;
    for lsn in [start_lsn, Lsn::MAX] {
        for (rel, first_block, path) in &files {
            let blocks = blocks(path);
            let count = u32::try_from(blocks.len()).unwrap();
            let mut kinds = vec![RequestKind::Exists(*rel), RequestKind::Nblocks(*rel)];
            kinds.extend((0..=count).map(|n| RequestKind::GetPage(*rel, first_block + n)));
            pages
                .ask(lsn, &kinds, |index, payload| match (index, payload) {
                    (0, payload) => assert_eq!(payload, Payload::Exists(true), "{rel}"),
                    (1, payload) => assert_eq!(payload, Payload::Nblocks(first_block + count)),
                    (index, Payload::Page(page)) => match blocks.get(index - 2) {
                        Some(block) => assert!(block == page, "{rel} block {}", index - 2),
                        None => assert!(page.iter().all(|byte| *byte == 0), "behind {rel}"),
                    },
                    (_, other) => panic!("{rel}: {other:?}"),
                })
                .await;
            compared += count;
        }
    }
    assert!(compared > 4000, "{compared} pages");
    for kind in SlruKind::ALL {
        let file = std::fs::read(pgdata.join(kind.directory()).join("0000")).unwrap();
        pages
            .ask(Lsn::MAX, &[RequestKind::SlruSegment(kind, 0)], |_, payload| {
                let Payload::SlruSegment(segment) = payload else { panic!("{payload:?}") };
                assert!(segment == file, "{kind}");
            })
            .await;
    }
    server.stop().await;
}

struct Http {
    base: String,
    agent: ureq::Agent,
}

impl Http {
    fn new(server: &Server) -> Http {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        Http { base: format!("http://{}", server.http_addr()), agent }
    }

    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let (agent, url) = (self.agent.clone(), format!("{}{path}", self.base));
        let method = method.to_owned();
        tokio::task::spawn_blocking(move || {
            let body = body.map(|body| body.to_string()).unwrap_or_default();
            let request = ureq::http::Request::builder()
                .method(method.as_str())
                .uri(url)
                .header("content-type", "application/json")
                .body(body)
                .unwrap();
            let mut response = agent.run(request).unwrap();
            let text = response.body_mut().read_to_string().unwrap();
            (response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
        })
        .await
        .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_lives_and_dies_over_http() {
    let dir = open_tempdir();
    let mut config = config(dir.path());
    config.wait_lsn_timeout = std::time::Duration::from_millis(100);
    let server = Server::start(config.clone()).await.unwrap();
    let http = Http::new(&server);
    let tenant = format!("/v1/tenant/{TENANT}");
    let timelines = format!("{tenant}/timeline");
    let timeline = format!("{timelines}/{TIMELINE}");
    let branch_id = TimelineId([0x33; 16]);

    assert_eq!(http.call("GET", "/v1/status", None).await.0, 200);
    let (status, body) = http.call("GET", &tenant, None).await;
    assert_eq!((status, &body["code"]), (404, &json!("tenant_not_found")), "{body}");
    let create_tenant = json!({"new_tenant_id": TENANT});
    assert_eq!(http.call("POST", "/v1/tenant", Some(create_tenant.clone())).await.0, 201);
    assert_eq!(http.call("POST", "/v1/tenant", Some(create_tenant)).await.0, 409);

    let create = json!({"new_timeline_id": TIMELINE, "pg_version": 17});
    let (status, detail) = http.call("POST", &timelines, Some(create.clone())).await;
    assert_eq!(status, 201, "{detail}");
    assert_eq!(http.call("POST", &timelines, Some(create)).await.0, 200);
    assert_eq!(detail["last_record_lsn"], detail["initdb_lsn"]);
    assert_eq!(detail["last_record_lsn"], detail["disk_consistent_lsn"]);

    let lsn = detail["last_record_lsn"].clone();
    let branch = json!({"new_timeline_id": branch_id, "ancestor_timeline_id": TIMELINE});
    let (status, body) = http.call("POST", &timelines, Some(branch)).await;
    assert_eq!((status, &body["ancestor_lsn"]), (201, &lsn), "{body}");
    let ahead = json!({
        "new_timeline_id": TimelineId([0x44; 16]), "ancestor_timeline_id": TIMELINE,
        "ancestor_start_lsn": "7/0"
    });
    let (status, body) = http.call("POST", &timelines, Some(ahead)).await;
    assert_eq!((status, &body["code"]), (503, &json!("branch_point_not_reached")), "{body}");
    let (status, body) = http.call("POST", &timelines, Some(json!({"new_timeline_id": "x"}))).await;
    assert_eq!((status, &body["code"]), (422, &json!("bad_request")), "{body}");

    let source = json!({"safekeepers": ["127.0.0.1:1"]});
    assert_eq!(http.call("PUT", &format!("{timeline}/wal_source"), Some(source)).await.0, 200);
    let (status, body) = http.call("PUT", &format!("{timeline}/checkpoint"), None).await;
    assert_eq!((status, &body["wal_source"]), (200, &json!(["127.0.0.1:1"])), "{body}");
    let (_, metrics) = http.call("GET", "/metrics", None).await;
    assert!(metrics.as_str().unwrap().contains(&format!("timeline_id=\"{TIMELINE}\"")));

    let (status, body) = http.call("DELETE", &timeline, None).await;
    assert_eq!((status, &body["code"]), (412, &json!("timeline_has_branches")), "{body}");
    server.stop().await;

    let server = Server::start(config).await.unwrap();
    let http = Http::new(&server);
    let (_, list) = http.call("GET", &timelines, None).await;
    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
    assert_eq!(http.call("DELETE", &format!("{timelines}/{branch_id}"), None).await.0, 200);
    assert_eq!(http.call("DELETE", &timeline, None).await.0, 200);
    assert_eq!(http.call("GET", &timeline, None).await.0, 404);
    assert_eq!(http.call("DELETE", &tenant, None).await.0, 200);
    assert_eq!(http.call("GET", "/v1/tenant", None).await, (200, json!([])));
    server.stop().await;
}
