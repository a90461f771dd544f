//! Deployments compared with what an earlier one made.

use mvm_host::Uplink;
use mvm_model::manifest::Manifest;
use mvm_model::{InstanceId, Resources};
use proptest::prelude::*;

use super::*;
use crate::deploy::basis::Basis;
use crate::destroy::want_no_more;
use crate::store::{self, NewInstance, Place, Recorded, Store};

const ALICE: &str = r#"
[tenant]
id = "alice"
[[pools]]
id = "gateways"
role = "gateway"
desired_running = 1
[[pools]]
id = "workers"
image = "python"
mem_mib = 256
data_disk_mib = 64
desired_running = 2
desired_sleeping = 1
[[publish]]
port = 8080
pool = "gateways"
target_port = 80
"#;

fn deployment(text: &str) -> Deployment {
    Manifest::parse(text).unwrap().deployment
}

/// The manifest with some of its text replaced; the text has to be there.
fn with(old: &str, new: &str) -> Deployment {
    assert!(ALICE.contains(old), "{old}");
    deployment(&ALICE.replacen(old, new, 1))
}

fn revisions() -> Revisions {
    [("gateways", "minimal-1"), ("workers", "python-1")]
        .map(|(pool, revision)| (pool.parse().unwrap(), revision.to_owned()))
        .into()
}

fn make(present: &Present, wanted: &Deployment) -> Plan {
    Plan::make(present, wanted, &revisions()).unwrap()
}

fn refused(present: &Present, wanted: &Deployment) -> (String, String) {
    let Problem { key, message } = Plan::make(present, wanted, &revisions()).unwrap_err();
    (key, message)
}

fn tenant(wanted: &Deployment, (net_id, subnet): (NetId, TenantSubnet)) -> TenantRow {
    TenantRow {
        id: wanted.tenant.clone(),
        net_id,
        subnet,
        uplink: Uplink::all().nth(net_id.get().into()).unwrap(),
        quotas: wanted.quotas,
        routes: wanted.routes.clone(),
        publish: wanted.publish.clone(),
        endpoints: wanted.endpoints.clone(),
        created_at: 0,
        doomed: false,
    }
}

fn instance(number: u32, tenant: &str, pool: &PoolRow, state: InstanceState) -> InstanceRow {
    let launched = Recorded {
        revision: pool.revision.clone(),
        resources: pool.spec.resources,
        base: None,
        upgrade: None,
    };
    InstanceRow {
        id: InstanceId::new(number),
        place: Place {
            tenant: tenant.parse().unwrap(),
            pool: pool.spec.id.clone(),
            offset: 3 + u16::try_from(number).unwrap(),
            uid: 100_000 + number,
            machine_id: String::new(),
        },
        state,
        since: 0,
        goal: None,
        generation: 1,
        disk_epoch: 1,
        reason: None,
        launched: (state != InstanceState::Ready).then_some(launched),
        process: None,
        snapshot: None,
        last_start: None,
        wake_at: None,
        intent: None,
    }
}

/// What is there once the plan of a deployment was carried out.
fn carried_out(before: &Present, wanted: &Deployment) -> Present {
    let plan = make(before, wanted);
    let mut pools = before.pools.clone();
    for new in &plan.pools {
        pools.retain(|pool| pool.spec.id != new.spec.id);
        pools.push(new.clone());
    }
    let mut instances = before.instances.clone();
    for (spec, goal) in &plan.instances {
        let pool = pools.iter().find(|pool| pool.spec.id == spec.id).unwrap();
        let number = u32::try_from(instances.len()).unwrap();
        let state = if *goal == Goal::Running { InstanceState::Running } else { InstanceState::Sleeping };
        instances.push(instance(number, wanted.tenant.as_str(), pool, state));
    }
    let workers: Vec<InstanceId> = instances.iter().map(|instance| instance.id).collect();
    let users = crate::users::assign(&wanted.tenant, &before.users, &wanted.users, &workers);
    let tenant = tenant(wanted, plan.network.unwrap());
    Present { tenant: Some(tenant), pools, instances, users, others: before.others.clone() }
}

fn alice() -> Present {
    carried_out(&Present::default(), &deployment(ALICE))
}

fn lines(pairs: &[(String, String)]) -> Vec<String> {
    pairs.iter().map(|(what, how)| format!("{what}: {how}")).collect()
}

#[test]
fn a_new_tenant_is_made_as_its_manifest_says() {
    let plan = make(&Present::default(), &deployment(ALICE));
    assert_eq!(
        lines(&plan.changes),
        [
            "alice: created",
            "alice/gateways: created",
            "alice/gateways: 1 instance created",
            "alice/workers: created",
            "alice/workers: 3 instances created",
        ]
    );
    assert_eq!(plan.differs, []);
    let pools: Vec<_> = plan.pools.iter().map(|p| (p.spec.id.as_str(), p.revision.as_str())).collect();
    assert_eq!(pools, [("gateways", "minimal-1"), ("workers", "python-1")]);
    let begin: Vec<_> = plan.instances.iter().map(|(spec, goal)| (spec.id.as_str(), *goal)).collect();
    assert_eq!(
        begin,
        [
            ("gateways", Goal::Running),
            ("workers", Goal::Running),
            ("workers", Goal::Running),
            ("workers", Goal::Sleeping),
        ]
    );
    let net_id = NetId::new(0).unwrap();
    assert_eq!(plan.network, Some((net_id, net_id.default_subnet())));
}

#[test]
fn the_same_again_changes_nothing_in_whatever_state_machines_are() {
    for state in InstanceState::ALL {
        let mut present = alice();
        present.instances.iter_mut().for_each(|instance| instance.state = state);
        let plan = make(&present, &deployment(ALICE));
        let nothing = Plan { network: plan.network, ..Plan::default() };
        assert_eq!(plan, nothing, "{state}");
    }
}

#[test]
fn each_changed_part_is_named_and_its_pool_written() {
    let parts = [
        ("mem_mib = 256", "mem_mib = 512", "resources changed"),
        ("data_disk_mib = 64", "data_disk_mib = 65", "resources changed"),
        ("desired_sleeping = 1", "desired_sleeping = 0", "desired counts changed"),
        ("image = \"python\"", "image = \"minimal\"", "image changed"),
        ("image = \"python\"", "image = \"python\"\nprofile = \"python\"", "image changed"),
        ("image = \"python\"", "image = \"python\"\negress = \"any\"", "egress changed"),
        ("image = \"python\"", "image = \"python\"\nsecret_scopes = []", "secret scopes changed"),
        ("image = \"python\"", "image = \"python\"\nrestart = \"never\"", "restart policy changed"),
        (
            "image = \"python\"",
            "image = \"python\"\nruntime_policy = { min_running_seconds = 1 }",
            "runtime policy changed",
        ),
    ];
    for (old, new, said) in parts {
        let wanted = with(old, new);
        let plan = make(&alice(), &wanted);
        assert!(
            lines(&plan.changes).contains(&format!("alice/workers: {said}")),
            "{new}: {:?}",
            plan.changes
        );
        assert!(plan.changes.iter().all(|(what, _)| what == "alice/workers"), "{new}: {:?}", plan.changes);
        let written: Vec<_> = plan.pools.iter().map(|pool| &pool.spec).collect();
        assert_eq!(written, [&wanted.pools[1]], "{new}");
        assert_eq!(plan.instances, [], "{new}");
    }
}

#[test]
fn changed_ports_routes_and_quotas_are_the_tenants() {
    let quotas = "[tenant.quotas]\nmax_running = 9\n[[pools]]\nid = \"gateways\"";
    let route = "[[routes]]\nname = \"all\"\nmatch_rule = { port = 80 }\n\
        target = { pool_id = \"workers\", instance_selector = \"any\", target_port = 80 }\n[[publish]]";
    let parts = [
        ("port = 8080", "port = 8081", "published ports changed"),
        ("target_port = 80", "target_port = 81", "published ports changed"),
        ("[[pools]]\nid = \"gateways\"", quotas, "quotas changed"),
        ("[[publish]]", route, "routes changed"),
    ];
    for (old, new, said) in parts {
        let plan = make(&alice(), &with(old, new));
        assert_eq!(lines(&plan.changes), [format!("alice: {said}")], "{new}");
        assert_eq!((plan.pools, plan.instances, plan.differs), (vec![], vec![], vec![]), "{new}");
    }
}

#[test]
fn a_machine_differs_until_its_next_cold_start_however_often_one_deploys() {
    let wanted = with("mem_mib = 256", "mem_mib = 512");
    let mut present = alice();
    let of_workers = |plan: &Plan| {
        let differ = plan.differs.iter().filter(|(what, _)| what.starts_with("alice/workers/"));
        differ.count()
    };
    let first = make(&present, &wanted);
    let how = "takes the new resources at its next cold start (`mvm deploy --restart`, or `mvm instance stop` and `start`)";
    let listed = ["i-00000001", "i-00000002", "i-00000003"].map(|id| format!("alice/workers/{id}: {how}"));
    assert_eq!(lines(&first.differs), listed);

    present = carried_out(&present, &wanted);
    let second = make(&present, &wanted);
    assert_eq!((&second.changes, &second.differs), (&vec![], &first.differs));

    // One that is down takes what is new whenever it starts; one that was started since has it.
    present.instances[1].state = InstanceState::Stopped;
    assert_eq!(of_workers(&make(&present, &wanted)), 2);
    present.instances[2].launched.as_mut().unwrap().resources = Resources { mem_mib: 512, ..resources() };
    assert_eq!(of_workers(&make(&present, &wanted)), 1);
    // And back to what the last one runs with: the one started since differs now.
    let back = make(&present, &deployment(ALICE));
    assert_eq!(
        back.differs.iter().map(|(what, _)| what.as_str()).collect::<Vec<_>>(),
        ["alice/workers/i-00000002"]
    );
}

fn resources() -> Resources {
    Resources { vcpus: 2, mem_mib: 256, data_disk_mib: 64 }
}

#[test]
fn a_command_leaves_alone_what_is_not_its_business() {
    let mut wanted = with("mem_mib = 256", "mem_mib = 512");
    wanted.quotas.max_pools = Some(9);
    let mut present = alice();
    present.instances.retain(|instance| instance.id != InstanceId::new(2));
    let about = |about: About| {
        let mut plan = make(&present, &wanted);
        plan.keep_to(&about);
        (lines(&plan.changes), plan.instances.len(), plan.differs.len(), plan.outdated.len())
    };
    assert_eq!(about(About::Tenant), (vec!["alice: quotas changed".to_owned()], 0, 0, 0));
    assert_eq!(about(About::Pool("gateways".parse().unwrap())), (vec![], 0, 0, 0));
    let (changes, created, differs, outdated) = about(About::Pool("workers".parse().unwrap()));
    assert_eq!(changes, ["alice/workers: resources changed", "alice/workers: 1 instance created"]);
    assert_eq!((created, differs, outdated), (1, 2, 2));
    assert_eq!(about(About::All).0.len(), 3);
}

#[test]
fn new_instances_begin_as_more_are_wanted_to_whatever_sleeps_already() {
    let begin = |present: &Present, new: &str| {
        let wanted = with("desired_running = 2\ndesired_sleeping = 1", new);
        let plan = make(present, &wanted);
        let workers = plan.instances.into_iter().filter(|(spec, _)| spec.id.as_str() == "workers");
        workers.map(|(_, goal)| goal).collect::<Vec<_>>()
    };
    let begins = |new| begin(&alice(), new);
    assert_eq!(begins("desired_running = 3\ndesired_sleeping = 1"), [Goal::Running]);
    assert_eq!(begins("desired_running = 2\ndesired_sleeping = 2"), [Goal::Sleeping]);
    assert_eq!(
        begins("desired_running = 3\ndesired_sleeping = 3"),
        [Goal::Running, Goal::Sleeping, Goal::Sleeping]
    );
    assert_eq!(begins("desired_running = 4\ndesired_sleeping = 0"), [Goal::Running]);
    // Where some are missing.
    let mut fewer = alice();
    fewer.instances.retain(|instance| instance.id == InstanceId::new(3));
    let same = "desired_running = 2\ndesired_sleeping = 1";
    assert_eq!(begin(&fewer, same), [Goal::Running, Goal::Running]);
    fewer.instances.clear();
    assert_eq!(begin(&fewer, same), [Goal::Running, Goal::Running, Goal::Sleeping]);
}

#[test]
fn one_more_instance_is_one_however_many_are_missing() {
    let mut present = alice();
    present.instances.retain(|instance| instance.place.pool.as_str() == "gateways");
    for goal in [Goal::Running, Goal::Sleeping] {
        let mut plan = make(&present, &deployment(ALICE));
        plan.keep_to(&About::Instance("workers".parse().unwrap(), goal));
        assert_eq!(plan.instances.iter().map(|(_, goal)| *goal).collect::<Vec<_>>(), [goal]);
        assert_eq!(lines(&plan.changes), ["alice/workers: 1 instance created"]);
    }
}

#[tokio::test]
async fn what_a_plan_was_made_from_is_looked_at_again_when_it_is_committed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("mvm.db")).unwrap();
    let present = alice();
    let (tenant, pools) = (present.tenant.clone().unwrap(), present.pools.clone());
    let new = |row: &InstanceRow| NewInstance { id: row.id, place: row.place.clone(), goal: None };
    let instances: Vec<NewInstance> = present.instances.iter().map(new).collect();
    let last = instances[3].clone();
    store
        .write(move |tx| {
            tenant.save(tx)?;
            pools.iter().try_for_each(|pool| pool.save(tx))?;
            instances.iter().try_for_each(|instance| instance.insert(tx))
        })
        .await
        .unwrap();
    let changed = async |wanted: &Deployment| {
        let basis = Basis::of(&wanted.tenant, &present, &make(&present, wanted));
        store.read(move |tx| basis.changed(tx)).await.unwrap()
    };
    let more = with("desired_running = 2", "desired_running = 3");
    let other = with("mem_mib = 256", "mem_mib = 512");
    let gateways = with("role = \"gateway\"", "role = \"gateway\"\negress = \"any\"");
    for wanted in [&more, &other, &gateways] {
        assert_eq!(changed(wanted).await, None);
    }
    store
        .write(move |tx| {
            store::remove_instance(tx, last.id)?;
            want_no_more(tx, &last.place, InstanceState::Sleeping)
        })
        .await
        .unwrap();
    let workers: PoolId = "workers".parse().unwrap();
    assert_eq!((changed(&more).await, changed(&other).await), (Some(workers.clone()), Some(workers.clone())));
    assert_eq!(changed(&gateways).await, None, "another pool is none of its business");
    let row = store.read(move |tx| store::pool(tx, &alice_id(), &workers)).await.unwrap().unwrap();
    assert_eq!((row.spec.desired.running, row.spec.desired.sleeping), (2, 0));
}

fn alice_id() -> mvm_model::TenantId {
    "alice".parse().unwrap()
}

#[test]
fn restarts_come_in_the_order_in_which_pools_start() {
    let mut wanted = deployment(ALICE);
    for pool in &mut wanted.pools {
        pool.resources.vcpus = 1;
    }
    wanted.pools.reverse();
    let plan = make(&alice(), &wanted);
    let order: Vec<&str> = plan.outdated.iter().map(|outdated| outdated.address.as_str()).collect();
    let workers = ["i-00000001", "i-00000002", "i-00000003"].map(|id| format!("alice/workers/{id}"));
    assert_eq!(order[0], "alice/gateways/i-00000000");
    assert_eq!(order[1..], workers);
}

#[test]
fn a_new_revision_is_taken_at_the_next_cold_start() {
    let mut newer = revisions();
    newer.insert("workers".parse().unwrap(), "python-2".to_owned());
    let plan = Plan::make(&alice(), &deployment(ALICE), &newer).unwrap();
    assert_eq!(lines(&plan.changes), ["alice/workers: new revision of the image"]);
    assert_eq!(plan.pools[0].revision, "python-2");
    assert!(
        plan.differs.iter().all(|(_, how)| how.starts_with("takes the new image at")),
        "{:?}",
        plan.differs
    );
    assert_eq!(plan.differs.len(), 3);
}

#[test]
fn too_many_are_listed_and_kept() {
    let fewer = with("desired_running = 2\ndesired_sleeping = 1", "desired_running = 1");
    let plan = make(&alice(), &fewer);
    let surplus = "alice/workers: has 3 instances, 1 wanted: `mvm instance destroy` removes one for good";
    assert_eq!(lines(&plan.changes), ["alice/workers: desired counts changed"]);
    assert_eq!(lines(&plan.differs), [surplus]);
    let again = make(&carried_out(&alice(), &fewer), &fewer);
    assert_eq!((lines(&again.changes), lines(&again.differs)), (vec![], vec![surplus.to_owned()]));

    let none = with("role = \"gateway\"\ndesired_running = 1", "role = \"gateway\"");
    let one = "alice/gateways: has 1 instance, 0 wanted: `mvm instance destroy` removes one for good";
    assert_eq!(lines(&make(&alice(), &none).differs), [one]);
}

#[test]
fn what_is_left_out_counts_against_the_quotas() {
    let quota = |limit: &str| {
        let text =
            ALICE[..ALICE.find("[[pools]]\nid = \"workers\"").unwrap()].replace("id = \"workers\"", "");
        let mut wanted =
            deployment(&text.replace("[[pools]]", &format!("[tenant.quotas]\n{limit}\n[[pools]]")));
        wanted.publish.clear();
        wanted
    };
    assert_eq!(refused(&alice(), &quota("max_pools = 1")).0, "tenant.quotas.max_pools");
    assert_eq!(refused(&alice(), &quota("max_disk_gib = 0")).0, "tenant.quotas.max_disk_gib");
    assert_eq!(
        refused(&alice(), &quota("max_instances_per_pool = 2")).0,
        "tenant.quotas.max_instances_per_pool"
    );
    assert!(Plan::make(&alice(), &quota("max_pools = 2\nmax_instances_per_pool = 3"), &revisions()).is_ok());
    assert!(Plan::make(&Present::default(), &quota("max_pools = 1"), &revisions()).is_ok());
}

#[test]
fn a_pool_that_is_left_out_is_listed_and_kept() {
    let wanted = deployment(&ALICE[..ALICE.find("[[pools]]\nid = \"workers\"").unwrap()]);
    let mut present = alice();
    present.tenant.as_mut().unwrap().publish.clear();
    let plan = make(&present, &wanted);
    assert_eq!((&plan.changes, &plan.pools), (&vec![], &vec![]));
    let [(what, how)] = plan.differs.as_slice() else { panic!("{:?}", plan.differs) };
    assert_eq!(what, "alice/workers");
    assert!(how.starts_with("not in the manifest any more"), "{how}");
}

#[test]
fn what_does_not_change_is_refused_at_its_key() {
    let refusals = [
        ("role = \"gateway\"", "role = \"builder\"", "pools[0].role", "a role does not change"),
        ("data_disk_mib = 64", "data_disk_mib = 63", "pools[1].data_disk_mib", "data disks only grow"),
        ("id = \"alice\"", "id = \"alice\"\nnet_id = 7", "tenant.net_id", "it does not change"),
        (
            "id = \"alice\"",
            "id = \"alice\"\nsubnet = \"10.241.0.0/16\"",
            "tenant.subnet",
            "it does not change",
        ),
    ];
    for (old, new, key, message) in refusals {
        let (at, said) = refused(&alice(), &with(old, new));
        assert_eq!(at, key, "{new}");
        assert!(said.contains(message), "{new}: {said}");
    }
    let same = with("id = \"alice\"", "id = \"alice\"\nnet_id = 0\nsubnet = \"10.240.0.0/24\"");
    assert_eq!(make(&alice(), &same).changes, []);
}

#[test]
fn another_tenants_network_is_never_given_again() {
    let first = alice().tenant.unwrap();
    let present = Present { others: vec![first], ..Present::default() };
    let bob = |more: &str| deployment(&ALICE.replacen("id = \"alice\"", &format!("id = \"bob\"\n{more}"), 1));
    let one = NetId::new(1).unwrap();
    assert_eq!(make(&present, &bob("")).network, Some((one, one.default_subnet())));
    let (key, message) = refused(&present, &bob("net_id = 0"));
    assert_eq!(
        (key.as_str(), message.as_str()),
        ("tenant.net_id", "tenant alice has this number: choose another, or leave it out")
    );
    for subnet in ["10.240.0.0/24", "10.240.0.0/16"] {
        let (key, message) = refused(&present, &bob(&format!("subnet = \"{subnet}\"")));
        assert_eq!(key, "tenant.subnet");
        assert_eq!(message, format!("subnet {subnet} overlaps tenant alice's 10.240.0.0/24"));
    }
    // A subnet of one's own leaves the number free of its default subnet.
    let wide = bob("subnet = \"10.255.0.0/16\"");
    assert_eq!(make(&present, &wide).network.unwrap().0, one);
}

proptest! {
    /// Whatever counts follow one another, nothing is ever destroyed, and once a deployment was carried out, the same
    /// again changes nothing.
    #[test]
    fn counts_only_ever_add(counts in proptest::collection::vec((0u32..5, 0u32..5), 1..6)) {
        let mut present = Present::default();
        let mut most = 0;
        for (running, sleeping) in counts {
            let new = format!("desired_running = {running}\ndesired_sleeping = {sleeping}");
            let wanted = with("desired_running = 2\ndesired_sleeping = 1", &new);
            present = carried_out(&present, &wanted);
            most = most.max((running + sleeping) as usize);
            let workers = present.instances.iter().filter(|i| i.place.pool.as_str() == "workers").count();
            prop_assert_eq!(workers, most);
            let again = make(&present, &wanted);
            prop_assert_eq!((again.changes, again.pools, again.instances), (vec![], vec![], vec![]));
            prop_assert_eq!(again.differs.len(), usize::from(workers > (running + sleeping) as usize));
        }
    }
}
