-- The tables of a Babylon database that are read or written here, as a deployed one has them.
-- Each part opens with a line `-- table: <name>` and is run only if that table is missing, indexes included: what is there
-- is never altered. "User" is the part of the real table that is used here.
-- Babylon's conventions: camelCase columns; ids are texts made by the writer; TIMESTAMP(3) without zone holds UTC;
-- "updatedAt" has no default and is set by every writer; JSON of trajectories is TEXT.

-- table: User
CREATE TABLE IF NOT EXISTS "User" (
  "id"                     TEXT PRIMARY KEY,
  "username"               TEXT,
  "displayName"            TEXT,
  "walletAddress"          TEXT,
  "privyId"                TEXT,
  "isActor"                BOOLEAN       NOT NULL DEFAULT false,
  "isAgent"                BOOLEAN       NOT NULL DEFAULT false,
  "isTest"                 BOOLEAN       NOT NULL DEFAULT false,
  "managedBy"              TEXT,
  "profileComplete"        BOOLEAN       NOT NULL DEFAULT false,
  "virtualBalance"         NUMERIC(18,2) NOT NULL DEFAULT 1000,
  "totalDeposited"         NUMERIC(18,2) NOT NULL DEFAULT 1000,
  "totalWithdrawn"         NUMERIC(18,2) NOT NULL DEFAULT 0,
  "lifetimePnL"            NUMERIC(18,2) NOT NULL DEFAULT 0,
  "reputationPoints"       INTEGER       NOT NULL DEFAULT 1000,
  "agentSystem"            TEXT,
  "agentTradingStrategy"   TEXT,
  "agentModelTier"         TEXT          NOT NULL DEFAULT 'free',
  "agentPointsBalance"     INTEGER       NOT NULL DEFAULT 0,
  "agentStatus"            TEXT          NOT NULL DEFAULT 'idle',
  "agentErrorMessage"      TEXT,
  "agentLastTickAt"        TIMESTAMP(3),
  "agentPlanningHorizon"   TEXT          NOT NULL DEFAULT 'single',
  "agentRiskTolerance"     TEXT          NOT NULL DEFAULT 'medium',
  "agentMaxActionsPerTick" INTEGER       NOT NULL DEFAULT 3,
  "autonomousTrading"      BOOLEAN       NOT NULL DEFAULT false,
  "autonomousPosting"      BOOLEAN       NOT NULL DEFAULT false,
  "autonomousCommenting"   BOOLEAN       NOT NULL DEFAULT false,
  "autonomousDMs"          BOOLEAN       NOT NULL DEFAULT false,
  "autonomousGroupChats"   BOOLEAN       NOT NULL DEFAULT false,
  "a2aEnabled"             BOOLEAN       NOT NULL DEFAULT false,
  "createdAt"              TIMESTAMP(3)  NOT NULL DEFAULT CURRENT_TIMESTAMP,
  "updatedAt"              TIMESTAMP(3)  NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS "User_username_key" ON "User" ("username");
CREATE INDEX IF NOT EXISTS "User_isAgent_idx" ON "User" ("isAgent");

-- table: trajectories
CREATE TABLE IF NOT EXISTS "trajectories" (
  "id"                   TEXT             NOT NULL,
  "trajectoryId"         TEXT             NOT NULL,
  "agentId"              TEXT             NOT NULL,
  "startTime"            TIMESTAMP(3)     NOT NULL,
  "endTime"              TIMESTAMP(3)     NOT NULL,
  "durationMs"           INTEGER          NOT NULL,
  "windowId"             VARCHAR(50),
  "windowHours"          INTEGER          NOT NULL DEFAULT 1,
  "episodeId"            VARCHAR(100),
  "scenarioId"           VARCHAR(100),
  "batchId"              VARCHAR(100),
  "stepsJson"            TEXT             NOT NULL,
  "rewardComponentsJson" TEXT             NOT NULL,
  "metricsJson"          TEXT             NOT NULL,
  "metadataJson"         TEXT             NOT NULL,
  "totalReward"          DOUBLE PRECISION NOT NULL,
  "episodeLength"        INTEGER          NOT NULL,
  "finalStatus"          TEXT             NOT NULL,
  "finalBalance"         DOUBLE PRECISION,
  "finalPnL"             DOUBLE PRECISION,
  "tradesExecuted"       INTEGER,
  "postsCreated"         INTEGER,
  "aiJudgeReward"        DOUBLE PRECISION,
  "aiJudgeReasoning"     TEXT,
  "judgedAt"             TIMESTAMP(3),
  "isTrainingData"       BOOLEAN          NOT NULL DEFAULT true,
  "isEvaluation"         BOOLEAN          NOT NULL DEFAULT false,
  "usedInTraining"       BOOLEAN          NOT NULL DEFAULT false,
  "trainedInBatch"       TEXT,
  "createdAt"            TIMESTAMP(3)     NOT NULL DEFAULT CURRENT_TIMESTAMP,
  "updatedAt"            TIMESTAMP(3)     NOT NULL,
  CONSTRAINT "trajectories_pkey" PRIMARY KEY ("id"),
  CONSTRAINT "trajectories_agentId_fkey" FOREIGN KEY ("agentId")
    REFERENCES "User" ("id") ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE UNIQUE INDEX IF NOT EXISTS "trajectories_trajectoryId_key"                 ON "trajectories" ("trajectoryId");
CREATE INDEX IF NOT EXISTS "trajectories_agentId_startTime_idx"                   ON "trajectories" ("agentId", "startTime");
CREATE INDEX IF NOT EXISTS "trajectories_aiJudgeReward_idx"                       ON "trajectories" ("aiJudgeReward");
CREATE INDEX IF NOT EXISTS "trajectories_isTrainingData_usedInTraining_idx"       ON "trajectories" ("isTrainingData", "usedInTraining");
CREATE INDEX IF NOT EXISTS "trajectories_scenarioId_createdAt_idx"                ON "trajectories" ("scenarioId", "createdAt");
CREATE INDEX IF NOT EXISTS "trajectories_trainedInBatch_idx"                      ON "trajectories" ("trainedInBatch");
CREATE INDEX IF NOT EXISTS "trajectories_windowId_agentId_idx"                    ON "trajectories" ("windowId", "agentId");
CREATE INDEX IF NOT EXISTS "trajectories_windowId_idx"                            ON "trajectories" ("windowId");
-- Not Babylon's: rows whose last change is news, neither a judgement mirrored here nor a use in training. On a database that
-- has the table already, an operator may add it with CREATE INDEX CONCURRENTLY; late rows of old windows are then noticed.
CREATE INDEX IF NOT EXISTS "rl_assets_trajectories_news_idx" ON "trajectories" ("updatedAt") INCLUDE ("windowId", "endTime")
  WHERE "updatedAt" IS DISTINCT FROM "judgedAt" AND NOT "usedInTraining";

-- table: reward_judgments
CREATE TABLE IF NOT EXISTS "reward_judgments" (
  "id"                  TEXT             NOT NULL,
  "trajectoryId"        TEXT             NOT NULL,
  "judgeModel"          TEXT             NOT NULL,
  "judgeVersion"        TEXT             NOT NULL,
  "overallScore"        DOUBLE PRECISION NOT NULL,
  "componentScoresJson" TEXT,
  "rank"                INTEGER,
  "normalizedScore"     DOUBLE PRECISION,
  "groupId"             TEXT,
  "reasoning"           TEXT             NOT NULL,
  "strengthsJson"       TEXT,
  "weaknessesJson"      TEXT,
  "criteriaJson"        TEXT             NOT NULL,
  "judgedAt"            TIMESTAMP(3)     NOT NULL DEFAULT CURRENT_TIMESTAMP,
  CONSTRAINT "reward_judgments_pkey" PRIMARY KEY ("id"),
  CONSTRAINT "reward_judgments_trajectoryId_fkey" FOREIGN KEY ("trajectoryId")
    REFERENCES "trajectories" ("trajectoryId") ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE UNIQUE INDEX IF NOT EXISTS "reward_judgments_trajectoryId_key" ON "reward_judgments" ("trajectoryId");
CREATE INDEX IF NOT EXISTS "reward_judgments_overallScore_idx"        ON "reward_judgments" ("overallScore");
CREATE INDEX IF NOT EXISTS "reward_judgments_groupId_rank_idx"        ON "reward_judgments" ("groupId", "rank");

-- table: training_batches
CREATE TABLE IF NOT EXISTS "training_batches" (
  "id"                TEXT             NOT NULL,
  "batchId"           TEXT             NOT NULL,
  "scenarioId"        TEXT,
  "baseModel"         TEXT             NOT NULL,
  "modelVersion"      TEXT             NOT NULL,
  "trajectoryIds"     TEXT             NOT NULL,
  "rankingsJson"      TEXT,
  "rewardsJson"       TEXT             NOT NULL,
  "trainingLoss"      DOUBLE PRECISION,
  "policyImprovement" DOUBLE PRECISION,
  "status"            TEXT             NOT NULL DEFAULT 'pending',
  "error"             TEXT,
  "createdAt"         TIMESTAMP(3)     NOT NULL DEFAULT CURRENT_TIMESTAMP,
  "startedAt"         TIMESTAMP(3),
  "completedAt"       TIMESTAMP(3),
  CONSTRAINT "training_batches_pkey" PRIMARY KEY ("id")
);
CREATE UNIQUE INDEX IF NOT EXISTS "training_batches_batchId_key"     ON "training_batches" ("batchId");
CREATE INDEX IF NOT EXISTS "training_batches_scenarioId_idx"         ON "training_batches" ("scenarioId");
CREATE INDEX IF NOT EXISTS "training_batches_status_createdAt_idx"   ON "training_batches" ("status", "createdAt");

-- table: trained_models
CREATE TABLE IF NOT EXISTS "trained_models" (
  "id"              TEXT             NOT NULL,
  "modelId"         TEXT             NOT NULL,
  "version"         TEXT             NOT NULL,
  "baseModel"       TEXT             NOT NULL,
  "trainingBatch"   TEXT,
  "status"          TEXT             NOT NULL DEFAULT 'training',
  "deployedAt"      TIMESTAMP(3),
  "archivedAt"      TIMESTAMP(3),
  "storagePath"     TEXT             NOT NULL,
  "benchmarkScore"  DOUBLE PRECISION,
  "accuracy"        DOUBLE PRECISION,
  "avgReward"       DOUBLE PRECISION,
  "evalMetrics"     JSONB,
  "wandbRunId"      TEXT,
  "wandbArtifactId" TEXT,
  "agentsUsing"     INTEGER          NOT NULL DEFAULT 0,
  "totalInferences" INTEGER          NOT NULL DEFAULT 0,
  "createdAt"       TIMESTAMP(3)     NOT NULL DEFAULT CURRENT_TIMESTAMP,
  "updatedAt"       TIMESTAMP(3)     NOT NULL,
  CONSTRAINT "trained_models_pkey" PRIMARY KEY ("id")
);
CREATE UNIQUE INDEX IF NOT EXISTS "trained_models_modelId_key"  ON "trained_models" ("modelId");
CREATE INDEX IF NOT EXISTS "trained_models_status_idx"          ON "trained_models" ("status");
CREATE INDEX IF NOT EXISTS "trained_models_version_idx"         ON "trained_models" ("version");
CREATE INDEX IF NOT EXISTS "trained_models_deployedAt_idx"      ON "trained_models" ("deployedAt");

-- table: llm_call_logs
CREATE TABLE IF NOT EXISTS "llm_call_logs" (
  "id"               TEXT             NOT NULL,
  "trajectoryId"     TEXT             NOT NULL,
  "stepId"           TEXT             NOT NULL,
  "callId"           TEXT             NOT NULL,
  "timestamp"        TIMESTAMP(3)     NOT NULL,
  "latencyMs"        INTEGER,
  "model"            TEXT             NOT NULL,
  "purpose"          TEXT             NOT NULL,
  "actionType"       TEXT,
  "systemPrompt"     TEXT             NOT NULL,
  "userPrompt"       TEXT             NOT NULL,
  "messagesJson"     TEXT,
  "response"         TEXT             NOT NULL,
  "reasoning"        TEXT,
  "temperature"      DOUBLE PRECISION NOT NULL,
  "maxTokens"        INTEGER          NOT NULL,
  "topP"             DOUBLE PRECISION,
  "promptTokens"     INTEGER,
  "completionTokens" INTEGER,
  "totalTokens"      INTEGER,
  "metadata"         TEXT,
  "createdAt"        TIMESTAMP(3)     NOT NULL DEFAULT CURRENT_TIMESTAMP,
  CONSTRAINT "llm_call_logs_pkey" PRIMARY KEY ("id")
);
CREATE UNIQUE INDEX IF NOT EXISTS "llm_call_logs_callId_key"   ON "llm_call_logs" ("callId");
CREATE INDEX IF NOT EXISTS "llm_call_logs_callId_idx"          ON "llm_call_logs" ("callId");
CREATE INDEX IF NOT EXISTS "llm_call_logs_timestamp_idx"       ON "llm_call_logs" ("timestamp");
CREATE INDEX IF NOT EXISTS "llm_call_logs_trajectoryId_idx"    ON "llm_call_logs" ("trajectoryId");

-- table: market_outcomes
CREATE TABLE IF NOT EXISTS "market_outcomes" (
  "id"                 TEXT         NOT NULL,
  "windowId"           VARCHAR(50)  NOT NULL,
  "stockTicker"        VARCHAR(20),
  "startPrice"         NUMERIC(10,2),
  "endPrice"           NUMERIC(10,2),
  "changePercent"      NUMERIC(5,2),
  "sentiment"          VARCHAR(20),
  "newsEvents"         JSONB,
  "predictionMarketId" TEXT,
  "question"           TEXT,
  "outcome"            VARCHAR(20),
  "finalProbability"   NUMERIC(5,4),
  "volume"             NUMERIC(15,2),
  "createdAt"          TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
  CONSTRAINT "market_outcomes_pkey" PRIMARY KEY ("id")
);
CREATE INDEX IF NOT EXISTS "market_outcomes_windowId_idx"             ON "market_outcomes" ("windowId");
CREATE INDEX IF NOT EXISTS "market_outcomes_windowId_stockTicker_idx" ON "market_outcomes" ("windowId", "stockTicker");

-- table: SystemSettings
CREATE TABLE IF NOT EXISTS "SystemSettings" (
  "id"           TEXT         NOT NULL DEFAULT 'system',
  "wandbModel"   TEXT,
  "wandbEnabled" BOOLEAN      NOT NULL DEFAULT false,
  "createdAt"    TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
  "updatedAt"    TIMESTAMP(3) NOT NULL,
  CONSTRAINT "SystemSettings_pkey" PRIMARY KEY ("id")
);

-- table: Market
CREATE TABLE IF NOT EXISTS "Market" (
  "id"                      TEXT          NOT NULL,
  "question"                TEXT          NOT NULL,
  "description"             TEXT,
  "gameId"                  TEXT,
  "dayNumber"               INTEGER,
  "yesShares"               NUMERIC(18,6) NOT NULL DEFAULT 0,
  "noShares"                NUMERIC(18,6) NOT NULL DEFAULT 0,
  "liquidity"               NUMERIC(18,6) NOT NULL,
  "resolved"                BOOLEAN       NOT NULL DEFAULT false,
  "resolution"              BOOLEAN,
  "endDate"                 TIMESTAMP(3)  NOT NULL,
  "createdAt"               TIMESTAMP(3)  NOT NULL DEFAULT CURRENT_TIMESTAMP,
  "updatedAt"               TIMESTAMP(3)  NOT NULL,
  "onChainMarketId"         TEXT,
  "onChainResolutionTxHash" TEXT,
  "onChainResolved"         BOOLEAN       NOT NULL DEFAULT false,
  "oracleAddress"           TEXT,
  CONSTRAINT "Market_pkey" PRIMARY KEY ("id")
);
CREATE INDEX IF NOT EXISTS "Market_createdAt_idx"        ON "Market" ("createdAt" DESC);
CREATE INDEX IF NOT EXISTS "Market_gameId_dayNumber_idx" ON "Market" ("gameId", "dayNumber");
CREATE INDEX IF NOT EXISTS "Market_onChainMarketId_idx"  ON "Market" ("onChainMarketId");
CREATE INDEX IF NOT EXISTS "Market_resolved_endDate_idx" ON "Market" ("resolved", "endDate");

-- table: PredictionPriceHistory
CREATE TABLE IF NOT EXISTS "PredictionPriceHistory" (
  "id"        TEXT             NOT NULL,
  "marketId"  TEXT             NOT NULL,
  "yesPrice"  DOUBLE PRECISION NOT NULL,
  "noPrice"   DOUBLE PRECISION NOT NULL,
  "yesShares" NUMERIC(24,8)    NOT NULL,
  "noShares"  NUMERIC(24,8)    NOT NULL,
  "liquidity" NUMERIC(24,8)    NOT NULL,
  "eventType" TEXT             NOT NULL,
  "source"    TEXT             NOT NULL,
  "createdAt" TIMESTAMP(3)     NOT NULL DEFAULT CURRENT_TIMESTAMP,
  CONSTRAINT "PredictionPriceHistory_pkey" PRIMARY KEY ("id"),
  CONSTRAINT "PredictionPriceHistory_marketId_fkey" FOREIGN KEY ("marketId")
    REFERENCES "Market" ("id") ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE INDEX IF NOT EXISTS "PredictionPriceHistory_marketId_createdAt_idx" ON "PredictionPriceHistory" ("marketId", "createdAt" DESC);

-- table: Organization
CREATE TABLE IF NOT EXISTS "Organization" (
  "id"            TEXT         NOT NULL,
  "name"          TEXT         NOT NULL,
  "description"   TEXT         NOT NULL,
  "type"          TEXT         NOT NULL,
  "canBeInvolved" BOOLEAN      NOT NULL DEFAULT true,
  "initialPrice"  DOUBLE PRECISION,
  "currentPrice"  DOUBLE PRECISION,
  "createdAt"     TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
  "updatedAt"     TIMESTAMP(3) NOT NULL,
  "imageUrl"      TEXT,
  CONSTRAINT "Organization_pkey" PRIMARY KEY ("id")
);
CREATE INDEX IF NOT EXISTS "Organization_currentPrice_idx" ON "Organization" ("currentPrice");
CREATE INDEX IF NOT EXISTS "Organization_type_idx"         ON "Organization" ("type");

-- table: StockPrice
CREATE TABLE IF NOT EXISTS "StockPrice" (
  "id"             TEXT             NOT NULL,
  "organizationId" TEXT             NOT NULL,
  "price"          DOUBLE PRECISION NOT NULL,
  "change"         DOUBLE PRECISION NOT NULL,
  "changePercent"  DOUBLE PRECISION NOT NULL,
  "timestamp"      TIMESTAMP(3)     NOT NULL DEFAULT CURRENT_TIMESTAMP,
  "isSnapshot"     BOOLEAN          NOT NULL DEFAULT false,
  "openPrice"      DOUBLE PRECISION,
  "highPrice"      DOUBLE PRECISION,
  "lowPrice"       DOUBLE PRECISION,
  "volume"         DOUBLE PRECISION,
  CONSTRAINT "StockPrice_pkey" PRIMARY KEY ("id"),
  CONSTRAINT "StockPrice_organizationId_fkey" FOREIGN KEY ("organizationId")
    REFERENCES "Organization" ("id") ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE INDEX IF NOT EXISTS "StockPrice_isSnapshot_timestamp_idx"     ON "StockPrice" ("isSnapshot", "timestamp");
CREATE INDEX IF NOT EXISTS "StockPrice_organizationId_timestamp_idx" ON "StockPrice" ("organizationId", "timestamp" DESC);
CREATE INDEX IF NOT EXISTS "StockPrice_timestamp_idx"                ON "StockPrice" ("timestamp" DESC);

-- table: PerpPosition
CREATE TABLE IF NOT EXISTS "PerpPosition" (
  "id"                   TEXT             NOT NULL,
  "userId"               TEXT             NOT NULL,   -- no FK in Babylon
  "ticker"               TEXT             NOT NULL,
  "organizationId"       TEXT             NOT NULL,
  "side"                 TEXT             NOT NULL,
  "entryPrice"           DOUBLE PRECISION NOT NULL,
  "currentPrice"         DOUBLE PRECISION NOT NULL,
  "size"                 DOUBLE PRECISION NOT NULL,
  "leverage"             INTEGER          NOT NULL,
  "liquidationPrice"     DOUBLE PRECISION NOT NULL,
  "unrealizedPnL"        DOUBLE PRECISION NOT NULL,
  "unrealizedPnLPercent" DOUBLE PRECISION NOT NULL,
  "fundingPaid"          DOUBLE PRECISION NOT NULL DEFAULT 0,
  "openedAt"             TIMESTAMP(3)     NOT NULL DEFAULT CURRENT_TIMESTAMP,
  "lastUpdated"          TIMESTAMP(3)     NOT NULL,
  "closedAt"             TIMESTAMP(3),
  "realizedPnL"          DOUBLE PRECISION,
  "settledAt"            TIMESTAMP(3),
  "settledToChain"       BOOLEAN          NOT NULL DEFAULT false,
  "settlementTxHash"     TEXT,
  CONSTRAINT "PerpPosition_pkey" PRIMARY KEY ("id")
);
CREATE INDEX IF NOT EXISTS "PerpPosition_organizationId_idx"  ON "PerpPosition" ("organizationId");
CREATE INDEX IF NOT EXISTS "PerpPosition_settledToChain_idx"  ON "PerpPosition" ("settledToChain");
CREATE INDEX IF NOT EXISTS "PerpPosition_ticker_idx"          ON "PerpPosition" ("ticker");
CREATE INDEX IF NOT EXISTS "PerpPosition_userId_closedAt_idx" ON "PerpPosition" ("userId", "closedAt");

-- table: AgentTrade
CREATE TABLE IF NOT EXISTS "AgentTrade" (
  "id"          TEXT             NOT NULL,
  "marketType"  TEXT             NOT NULL,            -- 'prediction' | 'perp'
  "marketId"    TEXT,
  "ticker"      TEXT,
  "action"      TEXT             NOT NULL,            -- 'open' | 'close'
  "side"        TEXT,                                 -- 'yes' | 'no' | 'long' | 'short'
  "amount"      DOUBLE PRECISION NOT NULL,
  "price"       DOUBLE PRECISION NOT NULL,
  "pnl"         DOUBLE PRECISION,
  "reasoning"   TEXT,
  "executedAt"  TIMESTAMP(3)     NOT NULL DEFAULT CURRENT_TIMESTAMP,
  "agentUserId" TEXT             NOT NULL,
  CONSTRAINT "AgentTrade_pkey" PRIMARY KEY ("id"),
  CONSTRAINT "AgentTrade_agentUserId_fkey" FOREIGN KEY ("agentUserId")
    REFERENCES "User" ("id") ON DELETE CASCADE ON UPDATE CASCADE
);
CREATE INDEX IF NOT EXISTS "AgentTrade_agentUserId_executedAt_idx" ON "AgentTrade" ("agentUserId", "executedAt" DESC);
CREATE INDEX IF NOT EXISTS "AgentTrade_marketType_marketId_idx"    ON "AgentTrade" ("marketType", "marketId");
CREATE INDEX IF NOT EXISTS "AgentTrade_ticker_idx"                 ON "AgentTrade" ("ticker");
