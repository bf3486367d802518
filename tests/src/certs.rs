//! Certificates as kubeadm lays them out: one authority, servers with their addresses in them, and the
//! apiserver's client certificate for etcd, which the tests let intruders steal.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::plan::{self, LOOPBACK, Party};

/// A certificate and its key, in PEM files.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its common name.
    pub name: &'static str,
    /// The certificate.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// All certificates of a lab.
#[derive(Debug)]
pub struct Certs {
    authority: PathBuf,
    etcd_server: Identity,
    etcd_peer: Identity,
    apiserver: Identity,
    apiserver_etcd_client: Identity,
    kubelet: Identity,
    webhook: Identity,
}

impl Certs {
    /// Makes all certificates in a directory.
    pub fn create(directory: &Path) -> Result<Self> {
        let issuer = Authority::create(directory)?;
        // One certificate serves on every host of the largest lab: who presents it does not matter
        // here.
        let cluster = plan::Topology::CLUSTER;
        let with = |parties: &[Party], more: &[Party]| [parties, more].concat();
        let members = with(cluster.control_plane, &[LOOPBACK]);
        let shared = [LOOPBACK, plan::SERVICE, plan::LB, plan::VIP, plan::INFRA];
        let servers = with(cluster.nodes, &shared);
        let webhook = [plan::WEBHOOK.party, plan::WEBHOOK_SERVICE];
        Ok(Self {
            etcd_server: issuer.issue("etcd-server", &members)?,
            etcd_peer: issuer.issue("etcd-peer", &members)?,
            apiserver: issuer.issue("kube-apiserver", &servers)?,
            apiserver_etcd_client: issuer.issue("kube-apiserver-etcd-client", &[])?,
            kubelet: issuer.issue("kubelet", &with(cluster.nodes, &[LOOPBACK]))?,
            webhook: issuer.issue("webhook", &webhook)?,
            authority: issuer.certificate,
        })
    }

    /// The authority's certificate.
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// etcd's for its clients.
    pub fn etcd_server(&self) -> &Identity {
        &self.etcd_server
    }

    /// etcd's for its peers.
    pub fn etcd_peer(&self) -> &Identity {
        &self.etcd_peer
    }

    /// The apiserver's for its clients.
    pub fn apiserver(&self) -> &Identity {
        &self.apiserver
    }

    /// The apiserver's as a client of etcd: it permits everything there.
    pub fn apiserver_etcd_client(&self) -> &Identity {
        &self.apiserver_etcd_client
    }

    /// The kubelet's for its clients.
    pub fn kubelet(&self) -> &Identity {
        &self.kubelet
    }

    /// The webhook's for its clients.
    pub fn webhook(&self) -> &Identity {
        &self.webhook
    }
}

struct Authority<'a> {
    directory: &'a Path,
    certificate: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl<'a> Authority<'a> {
    fn create(directory: &'a Path) -> Result<Self> {
        let key = KeyPair::generate().context("failed to make the authority's key")?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "enforcer-lab-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let signed = params
            .self_signed(&key)
            .context("failed to sign the authority")?;
        let certificate = directory.join("ca.crt");
        write(&certificate, &signed.pem())?;
        Ok(Self {
            directory,
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// Every certificate is valid for servers and clients: etcd uses its server certificate for its
    /// own gateway as well.
    fn issue(&self, name: &'static str, parties: &[Party]) -> Result<Identity> {
        let key = KeyPair::generate().with_context(|| format!("failed to make {name}'s key"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.subject_alt_names = parties
            .iter()
            .flat_map(|party| [IpAddr::V4(party.v4), IpAddr::V6(party.v6)])
            .map(SanType::IpAddress)
            .collect();
        let signed = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("failed to sign {name}'s certificate"))?;
        let certificate = self.directory.join(format!("{name}.crt"));
        let key_file = self.directory.join(format!("{name}.key"));
        write(&certificate, &signed.pem())?;
        write(&key_file, &key.serialize_pem())?;
        Ok(Identity {
            name,
            certificate,
            key: key_file,
        })
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
}
