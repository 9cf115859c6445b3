# One task: a slot has one reader. A second one would wait for the slot's lock, and only its workers would do anything.

resource "aws_cloudwatch_log_group" "walhouse" {
  name              = "/ecs/${var.name}"
  retention_in_days = var.log_retention_days
}

locals {
  # What these files know better than the configuration does, and which takes precedence over it.
  environment = merge(
    {
      # The configuration is no secret, and nothing has to be written into the container for it.
      WALHOUSE_CONFIG         = "env:WALHOUSE_TOML"
      WALHOUSE_TOML           = var.configuration
      WALHOUSE__QUEUE__REGION = local.region
      WALHOUSE__QUEUE__PREFIX = var.prefix
      WALHOUSE__QUEUE__FIFO   = tostring(var.fifo)
      WALHOUSE__LOG__FORMAT   = "json"
      WALHOUSE__HTTP__LISTEN  = var.scraper_security_group_id == null ? "127.0.0.1:9464" : "0.0.0.0:9464"
    },
    var.reports == null ? {} : {
      WALHOUSE__OBJECTS__URL    = "s3://${var.reports.bucket}/${var.reports.prefix}"
      WALHOUSE__OBJECTS__REGION = local.region
    },
  )

  logs = {
    logDriver = "awslogs"
    options = {
      awslogs-group         = aws_cloudwatch_log_group.walhouse.name
      awslogs-region        = local.region
      awslogs-stream-prefix = var.name
      # A log service that is away does not stop the pipeline.
      mode            = "non-blocking"
      max-buffer-size = "4m"
    }
  }

  walhouse = {
    name      = "walhouse"
    image     = var.image
    essential = true

    environment = [for name, value in local.environment : { name = name, value = value }]
    secrets     = [for name, arn in var.secrets : { name = name, valueFrom = arn }]

    # As in docker/Dockerfile, whose own ECS does not look at. It says that the process serves, not that it has caught
    # up: a restart helps nobody who is behind.
    healthCheck = {
      command     = ["CMD", "/usr/local/bin/walhouse", "health"]
      interval    = 10
      timeout     = 5
      retries     = 3
      startPeriod = 10
    }

    # It drains within 20 s.
    stopTimeout = 30

    user                   = "10001:10001"
    readonlyRootFilesystem = true
    linuxParameters = {
      capabilities       = { drop = ["ALL"] }
      initProcessEnabled = true
    }

    portMappings     = [{ containerPort = 9464, protocol = "tcp" }]
    logConfiguration = local.logs
  }
}

resource "aws_ecs_task_definition" "walhouse" {
  family                   = var.name
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.cpu
  memory                   = var.memory
  task_role_arn            = aws_iam_role.task.arn
  execution_role_arn       = aws_iam_role.execution.arn

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = var.architecture
  }

  container_definitions = jsonencode([local.walhouse])
}

resource "aws_ecs_service" "walhouse" {
  name            = var.name
  cluster         = var.cluster
  task_definition = aws_ecs_task_definition.walhouse.arn
  launch_type     = "FARGATE"
  desired_count   = 1

  # The old task ends before the new one begins. Otherwise there would be two for a while, of which one waits for the
  # slot's lock.
  deployment_minimum_healthy_percent = 0
  deployment_maximum_percent         = 100
  # It would begin a second task in another zone first.
  availability_zone_rebalancing = "DISABLED"

  # A version that does not start is not begun again and again. It is not rolled back either: the older one might not
  # know what the newer one has stored, so a person decides.
  deployment_circuit_breaker {
    enable   = true
    rollback = false
  }

  enable_execute_command = false
  propagate_tags         = "SERVICE"

  network_configuration {
    subnets          = var.subnet_ids
    security_groups  = [aws_security_group.walhouse.id]
    assign_public_ip = false
  }

  # Without its rights it would only halt.
  depends_on = [aws_iam_role_policy.task, aws_iam_role_policy.execution]
}

resource "aws_security_group" "walhouse" {
  name        = var.name
  description = "walhouse: out to PostgreSQL, ClickHouse and AWS; in for who scrapes it"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_egress_rule" "postgres" {
  security_group_id            = aws_security_group.walhouse.id
  description                  = "PostgreSQL"
  referenced_security_group_id = var.postgres.security_group_id
  ip_protocol                  = "tcp"
  from_port                    = var.postgres.port
  to_port                      = var.postgres.port
}

resource "aws_vpc_security_group_egress_rule" "clickhouse" {
  security_group_id            = aws_security_group.walhouse.id
  description                  = "ClickHouse"
  referenced_security_group_id = var.clickhouse.security_group_id
  ip_protocol                  = "tcp"
  from_port                    = var.clickhouse.port
  to_port                      = var.clickhouse.port
}

# SQS, Secrets Manager, CloudWatch Logs, ECR and S3 have no addresses of their own.
resource "aws_vpc_security_group_egress_rule" "aws" {
  security_group_id = aws_security_group.walhouse.id
  description       = "Services of AWS"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_security_group_ingress_rule" "metrics" {
  count = var.scraper_security_group_id == null ? 0 : 1

  security_group_id            = aws_security_group.walhouse.id
  description                  = "Metrics and health"
  referenced_security_group_id = var.scraper_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = 9464
  to_port                      = 9464
}
